"""The net's shapes as numbers, with no torch: what `model` builds and what the pages' layer table shows."""

from typing import NamedTuple

from regcompare.config import CLASSES, RunConfig

# Channels (conv places) or units (dense places) that normalization and dropout see at each place.
WIDTHS = {"input": 1, "conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84}
KERNEL = 5
# Inputs of each linear map: channels for a convolution, values for a dense layer (400 = 16 channels of 5x5).
FAN_INS = {"conv1": 1, "conv2": 6, "fc1": 400, "fc2": 120, "fc3": 84}
OUTPUTS = {**{place: WIDTHS[place] for place in ("conv1", "conv2", "fc1", "fc2")}, "fc3": CLASSES}
CONVS = ("conv1", "conv2")
MAP_SIDES = {"input": 32, "conv1": 28, "conv2": 10}  # side of a map after the linear map, before pooling


class Layer(NamedTuple):
    """A row of the layer table; `shape` leaves out the batch."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def layer_table(config: RunConfig) -> list[Layer]:
    """The layers of a recipe's net in order, as the table in the assignment prints them."""
    rows: list[Layer] = []

    def norm_and_dropout(place: str, shape: tuple[int, ...], before: bool) -> None:
        rate = getattr(config.dropout, place)
        if rate and before == (config.dropout_order == "before" and place != "input"):
            kind = "Dropout2d" if place in CONVS else "Dropout"
            rows.append(Layer(f"{place}_dropout", f"{kind}({rate:g})", shape, 0))
        if before and place in config.normalized_places:
            kind = "BatchNorm1d" if len(shape) == 1 else "BatchNorm2d"
            rows.append(Layer(f"{place}_bn", kind, shape, 2 * WIDTHS[place]))

    image = (1, MAP_SIDES["input"], MAP_SIDES["input"])
    if config.input_norm == "standard":
        rows.append(Layer("input_standard", "Normalize", image, 0))
    norm_and_dropout("input", image, before=True)
    norm_and_dropout("input", image, before=False)
    for place in CONVS:
        side, width = MAP_SIDES[place], WIDTHS[place]
        rows.append(Layer(place, "Conv2d", (width, side, side), width * (FAN_INS[place] * KERNEL**2 + 1)))
        norm_and_dropout(place, (width, side, side), before=True)
        rows.append(Layer(f"{place}_relu", "ReLU", (width, side, side), 0))
        rows.append(Layer(f"{place}_pool", "MaxPool2d", (width, side // 2, side // 2), 0))
        norm_and_dropout(place, (width, side // 2, side // 2), before=False)
    for place in ("fc1", "fc2"):
        width = WIDTHS[place]
        rows.append(Layer(place, "Linear", (width,), width * (FAN_INS[place] + 1)))
        norm_and_dropout(place, (width,), before=True)
        rows.append(Layer(f"{place}_relu", "ReLU", (width,), 0))
        norm_and_dropout(place, (width,), before=False)
    rows.append(Layer("fc3", "Linear", (CLASSES,), CLASSES * (FAN_INS["fc3"] + 1)))
    return rows


def parameter_count(config: RunConfig) -> int:
    """Learned numbers in one replicate."""
    return sum(layer.parameters for layer in layer_table(config))
