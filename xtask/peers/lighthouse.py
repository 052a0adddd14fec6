"""torchft's lighthouse, as a peer for `cargo xtask bench control`.

    MKS2_TORCHFT=FOLDER python lighthouse.py --bind 127.0.0.1:29510 --min_replicas 1

The package would load PyTorch, which the lighthouse needs not: only its extension is loaded.
"""

import glob
import importlib.machinery
import importlib.util
import os

(path,) = glob.glob(os.path.join(os.environ["MKS2_TORCHFT"], "torchft", "_torchft*.so"))
loader = importlib.machinery.ExtensionFileLoader("_torchft", path)
spec = importlib.util.spec_from_file_location("_torchft", path, loader=loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
module.lighthouse_main()
