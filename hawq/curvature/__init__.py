"""Second-order information: block Hessians as operators, and the solvers that read them."""

from hawq.curvature.hessian import Batch, BlockHessian, Loss
from hawq.curvature.lanczos import Lanczos
from hawq.curvature.power import PowerIteration
from hawq.curvature.solver import Solver, State, solve

__all__ = ["Batch", "BlockHessian", "Lanczos", "Loss", "PowerIteration", "Solver", "State", "solve"]
