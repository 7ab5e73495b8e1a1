"""Errors say what, where and what to do, and say it in another process too."""

import pickle

from tilth.errors import TilthError
from tilth.training.interrupt import Interrupted


def test_an_error_passes_from_process_to_process_whole():
    for error in (TilthError("no such thing", where="row 3", hint="Look."), Interrupted(7, 9, "run")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) and again.__dict__ == error.__dict__
        assert again.status == error.status
