"""The former path of `fastrnn.training.tasks`, and of `fastrnn.training.errors`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.errors import *
from fastrnn.training.tasks import *

warn_of_move(__name__, "fastrnn.training.tasks, its errors to fastrnn.training.errors")
