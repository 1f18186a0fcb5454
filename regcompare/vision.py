"""torchvision's data sets, also where its compiled half does not load.

The wheel on the package index is built for CUDA torch; beside a CPU torch its import stops at "operator torchvision::nms
does not exist" (pytorch issue 157648). Declaring the schemas of the operators that did not load lets the Python half work.
"""

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # the declarations live as long as their Library does


def datasets() -> ModuleType:
    """The module `torchvision.datasets`.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return importlib.import_module("torchvision.datasets")
