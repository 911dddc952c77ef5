"""Run one instance without a sandbox: `python -m agent_runtime --own DIR --peers DIR --workspace DIR`."""

from __future__ import annotations

import argparse

from agent_runtime import boot


def main() -> None:
    parser = argparse.ArgumentParser(prog="agent_runtime", description=__doc__)
    parser.add_argument("--own", required=True, help="directory for the sockets that this instance serves")
    parser.add_argument("--peers", required=True, help="directory of the sockets that it may dial")
    parser.add_argument("--workspace", required=True, help="directory in which the agent works")
    parser.add_argument("--ready-fd", type=int, default=boot.NO_READY_FD, help="told when it serves")
    options = parser.parse_args()
    boot.run(options.own, options.peers, options.workspace, options.ready_fd)


if __name__ == "__main__":
    main()
