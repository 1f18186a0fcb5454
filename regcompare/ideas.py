"""The ideas behind the assignment in a few sentences each, and what to beware of in a recipe. Text only."""

from typing import NamedTuple

from regcompare.config import RunConfig

SRIVASTAVA = (
    "N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov: Dropout: A Simple Way to Prevent Neural Networks from "
    "Overfitting. JMLR 15, 2014."
)
IOFFE = "S. Ioffe, C. Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift. ICML 2015."
SANTURKAR = "S. Santurkar, D. Tsipras, A. Ilyas, A. Madry: How Does Batch Normalization Help Optimization? NeurIPS 2018."
LI = "X. Li, S. Chen, X. Hu, J. Yang: Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift. CVPR 2019."


class Idea(NamedTuple):
    """One idea: its name, what it says, and where it comes from."""

    title: str
    text: str
    sources: tuple[str, ...]


COVARIATE_SHIFT = Idea(
    "Internal covariate shift",
    "Each layer learns from the outputs of the layer below, and those move while that layer learns too. Ioffe and Szegedy "
    "call the moving distribution of a layer's inputs internal covariate shift: a layer must follow a moving target, so steps "
    "must be small. Example: if conv 1 doubles its outputs in a step, everything conv 2 has learned about their size is off. "
    "Batch norm fixes mean and variance of each channel over the batch and lets the net learn a scale γ and a shift β of its "
    "own. Whether less shift is why it helps is disputed: Santurkar et al. find a smoother loss instead.",
    (IOFFE, SANTURKAR),
)
CO_ADAPTATION = Idea(
    "Co-adaptation",
    "Units that always see each other can come to rely on each other: one corrects the mistakes of another, on the training "
    "images only. Srivastava et al. call this co-adaptation. Example: two units that are both too large and cancel out are "
    "useless alone. Dropout silences a random share of the units in every step, so no unit can count on a certain other one "
    "and each must be useful by itself. The price is a noisy gradient and a smaller net in each step: a small net such as "
    "LeNet-5 may then fit too little.",
    (SRIVASTAVA,),
)
VARIANCE_SHIFT = Idea(
    "Why both together can disappoint",
    "In training dropout scales up what it keeps, so the variance of what follows is larger than in a test, when nothing is "
    "silenced. A batch norm behind it has stored the training variance and divides by it in the test: a variance shift, Li et "
    "al. call it. It grows with the rate and with each dropout below.",
    (LI,),
)

FEW_SEEDS = 3  # Student's t is 4.30 there; below, an interval is wider than any effect of interest
SMALL_BATCH = 8  # below, a batch's mean and variance are mostly noise
LARGE_LR = {"adam": 0.02, "sgd": 0.3}  # above, nets without batch norm often stop learning or leave the finite numbers


def cautions(config: RunConfig) -> list[str]:
    """What a recipe does that people regret, and why; a sentence each, none for most recipes."""
    found = []
    if len(config.seeds) < FEW_SEEDS:
        n = len(config.seeds)
        why = "luck and effect cannot be told apart" if n == 1 else "an interval from two values is 12.7 standard errors wide on each side"
        found.append(f"{n} seed{'s' * (n > 1)}: {why}. Train {FEW_SEEDS} or more, better 8.")
    if config.normalized_places and config.batch_size < SMALL_BATCH:
        found.append(
            f"Batch norm on batches of {config.batch_size}: their mean and variance are mostly noise, and training differs from testing. "
            "Take 32 images or more."
        )
    if config.lr > LARGE_LR[config.optimizer] and not config.batch_norm:
        found.append(
            f"Learning rate {config.lr:g} with {config.optimizer} and no batch norm: steps this large often overshoot. "
            f"Try {config.lr / 10:g}."
        )
    if config.dropout_order == "before":
        found.append(
            "Dropout right before batch norm: the stored variance is that of training, too large for testing (see Why, variance shift)."
        )
    if max(config.dropout.rates().values(), default=0) > 0.6:
        found.append("More than 60 % silenced at a place: a net as small as LeNet-5 may not have enough left to learn from.")
    return found
