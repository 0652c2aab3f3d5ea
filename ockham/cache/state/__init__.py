"""The state of sequences: what each group of layers holds of them, in a pool of its own."""

from ockham.cache.state.state import ExportedState as ExportedState
from ockham.cache.state.state import State as State
from ockham.cache.state.view import GroupView as GroupView
from ockham.cache.state.view import View as View
