"""What opens a model file and runs it.

onnxruntime's builds from 1.29 on send usage data to their maker and keep a device id in the user's cache folder. They read this variable
once, when they are imported, and switching it off later is too late for the id: so it's set here, before any module of ours can
import onnxruntime, and child processes inherit it. What the user has set stays.
"""

import os

if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
