"""regcompare: batch normalization or dropout, measured on LeNet-5 and MNIST."""

__version__ = "0.1.0"
