"""A project's own Python: its environment class and its grader functions, each file imported once."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from agentrft.core.errors import ConfigError, boundary
from agentrft.graders.function import GraderFunction
from agentrft.rollout.environment import Environment


class ProjectCode:
    """Imports files of a project folder, with the folder importable for their siblings."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[Path, ModuleType] = {}

    def environment(self, reference: str) -> type[Environment]:
        """Return the class that `file.py:Class` names. Raises ConfigError if there is none."""
        found = self._found(reference, "environment")
        if not isinstance(found, type) or not issubclass(found, Environment):
            raise ConfigError(
                f"environment = {reference!r}: it does not inherit from agentrft.Environment"
            )
        return found

    def grader(self, reference: str, where: str) -> GraderFunction:
        """Return the function that `file.py:name` names. Raises ConfigError if there is none."""
        found = self._found(reference, where)
        if not isinstance(found, GraderFunction):
            raise ConfigError(f"{where} = {reference!r}: decorate it with @agentrft.grader")
        return found

    def _found(self, reference: str, where: str) -> object:
        file, _, name = reference.partition(":")
        path = self._folder / file
        if not name or not path.is_file():
            raise ConfigError(
                f"{where} = {reference!r}: write it as `file.py:name`, relative to {self._folder}"
                + ("" if path.is_file() else f"; {path} does not exist")
            )
        if path not in self._modules:
            self._modules[path] = _import_file(path)
        try:
            return self._modules[path].__dict__[name]
        except KeyError:
            raise ConfigError(f"{where} = {reference!r}: {name} is missing in {path}") from None


def _import_file(path: Path) -> ModuleType:
    module_name = f"agentrft_project_{path.resolve().parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    _make_importable(path.resolve().parent)
    with boundary(ConfigError, str(path)):
        spec.loader.exec_module(module)
    return module


def _make_importable(folder: Path) -> None:
    """Let `import sibling` mean the file in this folder, whatever another project so named."""
    for sibling in folder.glob("*.py"):
        known = getattr(sys.modules.get(sibling.stem), "__file__", None)
        if known is None or Path(known).resolve().parent == folder:
            continue
        installed = Path(known).resolve().is_relative_to(sys.prefix)
        if not installed and sibling.stem not in sys.stdlib_module_names:
            del sys.modules[sibling.stem]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
