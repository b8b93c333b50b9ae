"""One module per DVC stage, of the same name."""

import signal
import sys

# while a stage's command imports: Ctrl-C ends it without a traceback
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
