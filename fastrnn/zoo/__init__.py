"""Cells of the literature in the language of :mod:`fastrnn.cells`, a module each.

A module names its source, shapes and initial values. ``print(zoo.janet)`` shows a cell's formula
with the derivative that was found. Importing fastrnn does not import the zoo.

Example:
    >>> from fastrnn import zoo
    >>> layer = fastrnn.Recurrent(zoo.peephole_lstm, 12, 64, num_layers=2)
"""

from fastrnn.zoo.cfc import cfc
from fastrnn.zoo.clipped_gru import clipped_gru
from fastrnn.zoo.coupled_lstm import coupled_lstm
from fastrnn.zoo.ctrnn import ctrnn
from fastrnn.zoo.ea_lstm import ea_lstm
from fastrnn.zoo.gru_d import gru_d
from fastrnn.zoo.indrnn import indrnn
from fastrnn.zoo.janet import janet
from fastrnn.zoo.leaky_rnn import leaky_rnn
from fastrnn.zoo.ligru import ligru
from fastrnn.zoo.ltc import ltc
from fastrnn.zoo.mgu import mgu
from fastrnn.zoo.mingru import mingru
from fastrnn.zoo.minlstm import minlstm
from fastrnn.zoo.nas import nas
from fastrnn.zoo.peephole_lstm import peephole_lstm
from fastrnn.zoo.reset_first_gru import reset_first_gru
from fastrnn.zoo.slstm import slstm
from fastrnn.zoo.sru import sru
from fastrnn.zoo.t_lstm import t_lstm
from fastrnn.zoo.ugrnn import ugrnn
from fastrnn.zoo.variational_gru import variational_gru
from fastrnn.zoo.variational_lstm import variational_lstm
from fastrnn.zoo.zoneout_gru import zoneout_gru
from fastrnn.zoo.zoneout_lstm import zoneout_lstm

__all__ = [
    "cfc",
    "clipped_gru",
    "coupled_lstm",
    "ctrnn",
    "ea_lstm",
    "gru_d",
    "indrnn",
    "janet",
    "leaky_rnn",
    "ligru",
    "ltc",
    "mgu",
    "mingru",
    "minlstm",
    "nas",
    "peephole_lstm",
    "reset_first_gru",
    "slstm",
    "sru",
    "t_lstm",
    "ugrnn",
    "variational_gru",
    "variational_lstm",
    "zoneout_gru",
    "zoneout_lstm",
]
