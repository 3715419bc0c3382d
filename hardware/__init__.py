"""Real torch runs: two-device models, the pipeline runner, micro-benchmarks. The only torch here.

Importing this package needs torch to be installed and does not load it; its modules load it.
"""

from importlib.util import find_spec

from mpsim.errors import CalibrationError

if find_spec("torch") is None:
    raise CalibrationError("torch is not installed; pip install 'mpsim[hardware]'")
