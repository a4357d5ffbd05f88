"""The former path of `fastrnn.training.tasks`, and of errors and `option`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.errors import *
from fastrnn.training.options import option as option
from fastrnn.training.tasks import *

warn_of_move(
    __name__,
    "fastrnn.training.tasks, its errors to fastrnn.training.errors, "
    "option() to fastrnn.training.options",
)
