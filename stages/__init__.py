"""One module per DVC stage, of the same name."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # while a stage's command imports: Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
