"""The `cai` command. Every command imports what it needs when it runs, so that help and checks load no torch."""

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

import cai
from cai.errors import CaiError

__all__ = ["main"]

if TYPE_CHECKING:
    _Parser = argparse.ArgumentParser
    _Group = argparse._SubParsersAction[argparse.ArgumentParser]


def _run(args: argparse.Namespace) -> None:
    from cai.commands import run, sweep

    sweep.sweep(args.overrides) if args.multirun else run.run(args.overrides)


def _compare(args: argparse.Namespace) -> None:
    from cai.commands import compare

    compare.compare(args.runs, args.output)


def _compare_labelers(args: argparse.Namespace) -> None:
    from cai.commands import compare

    compare.compare_labelers(args.runs, args.output)


def _constitution_check(args: argparse.Namespace) -> None:
    from cai.commands import files

    files.check(args.names)


def _constitution_import(args: argparse.Namespace) -> None:
    from cai.commands import files

    files.import_constitution(args.source, args.dest)


def _constitution_test(args: argparse.Namespace) -> int:
    from cai.commands import workbench

    return workbench.test(args.name, args.overrides)


def _constitution_preview(args: argparse.Namespace) -> int:
    from cai.commands import workbench

    return workbench.preview(args.name, args.prompt, args.num, args.overrides)


def _constitution_diff(args: argparse.Namespace) -> int:
    from cai.commands import workbench

    return workbench.diff(args.old, args.new, args.run, args.overrides)


def _constitution_lint(args: argparse.Namespace) -> int:
    from cai.commands import workbench

    return workbench.lint(args.name, args.run, args.comparisons, args.overrides)


def _data(args: argparse.Namespace) -> None:
    from cai.commands import data

    own = ("columns", "tags", "dedup_prefix", "max_per_user", "screen_pii")
    source = data.Source(path=args.source, format=args.format, **{name: getattr(args, name) for name in own})
    if args.command == "check":
        data.check(source)
    elif args.command == "import":
        data.import_data(source, args.output)
    else:
        data.export_data(source, args.output, test_share=args.test_share, keep_even=args.keep_even)


def _label_serve(args: argparse.Namespace) -> None:
    from cai.commands import label

    label.serve(args.database, host=args.host, port=args.port, url=args.url)


def _label_invite(args: argparse.Namespace) -> None:
    from cai.commands import label

    label.invite(args.database, args.name, is_admin=args.admin, url=args.url)


def _label_status(args: argparse.Namespace) -> None:
    from cai.commands import label

    label.status(args.database)


def _label_export(args: argparse.Namespace) -> None:
    from cai.commands import label

    label.export(args.database, args.output, batch=args.batch, gold_of=args.gold_of)


def _init(args: argparse.Namespace) -> None:
    from cai.commands import files

    files.init(args.dir)


def _doctor(args: argparse.Namespace) -> None:
    from cai.commands import doctor

    if args.server is None:
        doctor.doctor()
    else:
        url, model = args.server
        doctor.server(url, model, args.api_key_env)


def _add(
    group: "_Group", name: str, action: Callable[[argparse.Namespace], int | None], text: str, epilog: str = ""
) -> "_Parser":
    """A command of `group` that does `action`."""
    command = group.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(action=action, parser=command)
    return command


def _add_workbench(group: "_Group") -> None:
    """What a constitution does, seen before anything is trained."""
    test = _add(group, "test", _constitution_test, "judge a constitution's own examples; exit 1 when one fails")
    preview = _add(group, "preview", _constitution_preview, "show responses, critiques, revisions and labels")
    diff = _add(group, "diff", _constitution_diff, "show what an edit changes before anything is trained")
    lint = _add(group, "lint", _constitution_lint, "show doubles, idle principles and contradictions")
    diff.add_argument("old", metavar="OLD", help="a name or a path")
    diff.add_argument("new", metavar="NEW")
    for command in (test, preview, lint):
        command.add_argument("name", metavar="NAME", help="a name or a path")
    for command in (diff, lint):
        command.add_argument("--run", metavar="RUN", help="a run folder: its settings, and the comparisons it labelled")
    preview.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="one of your own (repeatable)")
    preview.add_argument("--num", type=int, default=4, metavar="N", help="prompts of the data (%(default)s)")
    lint.add_argument("--comparisons", type=int, default=200, metavar="N", help="pairs to judge (%(default)s)")
    for command in (test, preview, diff, lint):
        # with a default, argparse does not call them required when something else is missing
        command.add_argument("overrides", nargs="*", default=(), metavar="key=value", help="settings, as for cai run")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cai", description=cai.__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _add(commands, "run", _run, "run the pipeline", _RUN_EPILOG)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")
    command.add_argument("-m", "--multirun", action="store_true", help="sweep: a run for each combination of values")

    command = _add(commands, "compare", _compare, "write one report about several runs")
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of run folders")
    command.add_argument("--output", default="comparison", metavar="DIR", help="where report.html goes (%(default)s)")

    command = _add(commands, "compare-labelers", _compare_labelers, "write a page about labelers of the same pairs")
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of run folders")
    command.add_argument("--output", default="labelers", metavar="DIR", help="where labelers.html goes (%(default)s)")

    command = commands.add_parser("constitution", help="check, test, preview, compare and import constitutions")
    group = command.add_subparsers(metavar="COMMAND", required=True)
    command = _add(group, "check", _constitution_check, "report every problem of constitution files")
    command.add_argument("names", nargs="*", metavar="NAME", help="a name or a path (all that are found, if none)")
    command = _add(group, "import", _constitution_import, "turn a published JSON constitution into YAML")
    command.add_argument("source", metavar="SRC", help="a JSON file")
    command.add_argument("dest", metavar="DEST", help="the YAML file to write")

    _add_workbench(group)
    _add_data(commands)
    _add_label(commands)

    command = _add(commands, "init", _init, "copy conf/, constitutions/ and prompts/ to edit")
    command.add_argument("dir", metavar="DIR")
    command = _add(
        commands, "doctor", _doctor, "what machine, devices, versions and extras are here, or a server can do"
    )
    command.add_argument("--server", nargs=2, metavar=("URL", "MODEL"), help="ask a server what it can do, instead")
    command.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the server's key")
    return parser


def _add_data(commands: "_Group") -> None:
    """`cai data ...`: datasets in and out."""
    command = commands.add_parser("data", help="preference datasets: in, looked at, and out")
    group = command.add_subparsers(metavar="COMMAND", required=True, dest="command")
    read = "read labelled comparisons into a folder of records"
    _data_options(_add(group, "import", _data, read, _DATA_EPILOG), True)
    _data_options(_add(group, "check", _data, "say what an import would give, and which rows cannot be used"), False)
    command = _add(group, "export", _data, "write a dataset for TRL and the hub, with everything known in Parquet")
    _data_options(command, True)
    command.add_argument("--test-share", type=float, default=0.0, help="share of the prompts held out (%(default)s)")
    command.add_argument("--keep-even", action="store_true", help="rows also for pairs of which neither is preferred")


def _data_options(command: argparse.ArgumentParser, writes: bool) -> None:
    """What is read, and how."""
    command.add_argument(
        "source", metavar="SRC", help="a file; or records: a run folder, or one that this command wrote"
    )
    if writes:
        command.add_argument("output", metavar="DIR", help="a new folder")
    command.add_argument("--format", default="records", help="argilla, hh, label_studio, plain, ratings, records, trl")
    command.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="names of columns in the file")
    command.add_argument("--tags", nargs="+", default=[], metavar="TAG", help="of all prompts")
    command.add_argument("--dedup-prefix", type=int, metavar="N", help="prompts with N characters in common are one")
    command.add_argument("--max-per-user", type=int, metavar="N", help="prompts of one user, at most")
    command.add_argument("--screen-pii", action="store_true", help="replace what looks like personal data by tags")


_DATA_EPILOG = """\
examples:
  cai data import harmless-base.jsonl.gz data/hh --format hh --tags red_team
  cai data import votes.csv data/votes --format plain --columns prompt=question first=a second=b preferred=winner
  cai data export runs/rlaif exported --test-share 0.1
"""


def _add_label(commands: "_Group") -> None:
    """`cai label ...`: the page for people who label."""
    command = commands.add_parser("label", help="the web page on which people label, and what they said")
    group = command.add_subparsers(metavar="COMMAND", required=True)
    serve = _add(group, "serve", _label_serve, "serve the page (stop it with Ctrl-C)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=8400, help="port to listen on (%(default)s)")
    invite = _add(group, "invite", _label_invite, "print a link with which a person chooses a password and begins")
    invite.add_argument("name", metavar="NAME", help="who; a known name gets a new password")
    invite.add_argument("--admin", action="store_true", help="may see the admin page")
    status = _add(group, "status", _label_status, "how far the labelling is, and how well people agree")
    export = _add(group, "export", _label_export, "write comparisons.jsonl and judgments.jsonl")
    export.add_argument("output", metavar="DIR", help="folder to write")
    export.add_argument("--batch", type=int, metavar="N", help="which batch of comparisons (the latest)")
    export.add_argument("--gold-of", metavar="NAME", help="write gold.jsonl instead: what this expert said")
    for command in (serve, invite):
        command.add_argument("--url", help="where people reach the page, if not at host and port (https://...)")
    for command in (serve, invite, status, export):
        command.add_argument("--database", default="labels.db", help="SQLite file or URL (%(default)s)")


_RUN_EPILOG = """\
examples:
  cai run experiment=demo                            RLHF against RLAIF on the embedded sandbox
  cai run experiment=rlaif constitution=minimal      one run, another constitution
  cai run experiment=rlaif seed=1,2,3 -m             three runs, and a report about all of them
  cai run experiment=demo labeler=mixed              a third arm: a choice that every arm makes, and none made so

what one arm alone is to have goes into its own list, which names all that it has:
  cai run experiment=demo "arms.rlhf=['labeler=simulated','labeler.agreement=0.6']"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 when it went well, 1 when what it tested fails, 2 after a mistake of the user's, 3 when a run
    waits for people's labels. One line on stderr says which. As after a signal, 130 for Ctrl-C, and 141, without
    a word, when nobody reads the output any more (`cai ... | head`).
    """
    try:
        try:
            return _main(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where an error can be caught, and not when Python ends
    except BrokenPipeError:
        if not any(map(_is_unread, (sys.stdout, sys.stderr))):
            raise  # another pipe, of a worker or a server
        _drop_output()
        return 128 + 13  # SIGPIPE


def _is_unread(stream: TextIO) -> bool:
    """Whether what is written there goes to a pipe that nobody reads."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except OSError:  # no file: a buffer in memory
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_output() -> None:
    """Send what is left in buffers nowhere, as Python's documentation has it: it would be written when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(argv: Sequence[str] | None) -> int:
    """`main`, as long as what it prints is read."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no overrides behind -m; Hydra's users put them there.
    if rest and (not hasattr(arguments, "overrides") or any(item.startswith("-") for item in rest)):
        arguments.parser.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    try:
        return arguments.action(arguments) or 0
    except CaiError as error:
        if os.environ.get("CAI_TRACEBACK"):
            raise
        print(f"cai: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cai: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
