"""Run one instance in a container, or without a sandbox.

`python -m agent_runtime --own DIR --peers DIR --workspace DIR`
"""

from __future__ import annotations

import argparse
import ctypes

from agent_runtime import boot

PR_SET_DUMPABLE = 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="agent_runtime", description=__doc__)
    parser.add_argument("--own", required=True, help="directory for the sockets that this instance serves")
    parser.add_argument("--peers", required=True, help="directory of the sockets that it may dial")
    parser.add_argument("--workspace", required=True, help="directory in which the agent works")
    parser.add_argument("--ready-fd", type=int, default=boot.NO_READY_FD, help="told when it serves")
    options = parser.parse_args()
    # Tools of the agent run as the same user: they must not read the runtime's memory, which holds its key.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    boot.run(options.own, options.peers, options.workspace, options.ready_fd)


if __name__ == "__main__":
    main()
