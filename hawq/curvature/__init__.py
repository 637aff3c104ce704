"""Second-order information: block curvature as operators, and the solvers that read them."""

from hawq.curvature.activations import activation_traces
from hawq.curvature.block_solver import solve_blocks
from hawq.curvature.distillation import DistillationLoss
from hawq.curvature.first_order import AutoSolver, GradientNorm, NoCurvature, RandomScore
from hawq.curvature.fisher import Fisher
from hawq.curvature.forms import check_forms, detached_layers, fixed
from hawq.curvature.gauss_newton import BlockGaussNewton
from hawq.curvature.hessian import BlockHessian
from hawq.curvature.hutchinson import Hutchinson
from hawq.curvature.lanczos import Lanczos
from hawq.curvature.landscape import Slice, landscape
from hawq.curvature.low_rank import LowRank
from hawq.curvature.operator import Batch, BlockOperator, Loss
from hawq.curvature.power import PowerIteration
from hawq.curvature.preflight import check_loss, check_network, refuse_short_weights
from hawq.curvature.solver import Solver, State, solve

OPERATORS: dict[str, type[BlockOperator]] = {"hessian": BlockHessian, "ggn": BlockGaussNewton}

__all__ = [
    "OPERATORS",
    "AutoSolver",
    "Batch",
    "BlockGaussNewton",
    "BlockHessian",
    "BlockOperator",
    "DistillationLoss",
    "Fisher",
    "GradientNorm",
    "Hutchinson",
    "Lanczos",
    "Loss",
    "LowRank",
    "NoCurvature",
    "PowerIteration",
    "RandomScore",
    "Slice",
    "Solver",
    "State",
    "activation_traces",
    "check_forms",
    "check_loss",
    "check_network",
    "detached_layers",
    "fixed",
    "landscape",
    "refuse_short_weights",
    "solve",
    "solve_blocks",
]
