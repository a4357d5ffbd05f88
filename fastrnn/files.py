"""The former path of `fastrnn.training.files`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.files import *

warn_of_move(__name__, "fastrnn.training.files")
