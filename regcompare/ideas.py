"""The ideas behind the assignment in a few sentences each: what the Why page and the report say, once. Text only."""

from typing import NamedTuple

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
