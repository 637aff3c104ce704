"""Where the packages are: hawq/, and conf/, which is installed as hawq/conf; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hawq", "hawq.*"]), "hawq.conf"],
    package_dir={"hawq.conf": "conf"},
    package_data={"hawq": ["py.typed", "report/assets/*"], "hawq.conf": ["**/*.yaml"]},
)
