"""The former path of `fastrnn.training.train`, and of `fastrnn.training.options`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.options import *
from fastrnn.training.train import *

warn_of_move(__name__, "fastrnn.training.train, its options to fastrnn.training.options")
