"""The help texts of xm, one page per command. Imported only when help is asked for."""

from __future__ import annotations

from toolstack.xm.cli import BUILT, NOT_BUILT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Page:
    """`options` and `examples` are (word, meaning) pairs; `text` is the description, its lines at most 76
    wide.
    """

    def __init__(
        self,
        arguments: str,
        summary: str,
        text: str = "",
        options: tuple[tuple[str, str], ...] = (),
        examples: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.arguments = arguments
        self.summary = summary
        self.text = text
        self.options = options
        self.examples = examples


_VARS = """\
The configuration file has the syntax of Python, but is not executed: it holds
assignments of strings, numbers, lists and dictionaries, joined with + and
formatted with %. Words of the form name=value override the file; they are
also visible to it as names. A mistake is reported with file, line and key.

Without a file, or with a name without a '/', the file is looked for in the
folders of --path. A domain without a name gets the name of its file."""

_CREATE_OPTIONS = (
    ("-q, --quiet", "print errors only"),
    ("--path=PATH", "folders to search for the file, separated by ':' (default .:/etc/xen)"),
    ("-f, --defconfig=FILE", "the configuration file"),
    ("-F, --config=FILE", "a file that holds the (vm ...) expression itself"),
    ("-n, --dryrun", "print the (vm ...) expression and do nothing"),
    ("--help_config", "list the keys of configuration files"),
)

_DISK = """\
BackDev says where the image is: phy:DEVICE, file:/path for a plain file,
tap:FORMAT:/path for an image file (aio, qcow2, vmdk, vdi, vhd and others),
nbd:HOST:PORT, iscsi://..., rbd:...; FrontDev is what the guest calls it, such
as xvdb, with :cdrom behind it for a drive whose medium can change. Mode is r,
w, or w! for an image that another guest writes as well."""
_VIF = """\
Without any word the interface gets a MAC address of its own and belongs to
the network xenbr0. A network may be followed by .TAG for a VLAN, or by
:TAG:TAG for a trunk of them; see umxen network. Scripts are not run."""

PAGES: dict[str, Page] = {
    "block-attach": Page(
        "<Domain> <BackDev> <FrontDev> <Mode> [BackDomain]",
        "Give a domain another virtual disk.",
        _DISK,
        examples=(
            ("xm block-attach deb file:/d.img xvdb w", "a second disk for deb"),
            ("xm block-attach deb tap:qcow2:/d.qcow2 xvdc r", "a third one, read only"),
        ),
    ),
    "block-configure": Page(
        "<Domain> <BackDev> <FrontDev> <Mode> [BackDomain]",
        "Change the medium of a virtual CD-ROM drive.",
        """\
The words are those of block-attach and name a drive that is attached. Without
a BackDev ('') the drive is empty then. Nothing else of a disk can change.""",
        examples=(
            ("xm block-configure deb file:/2.iso xvdd:cdrom r", "put another disc in"),
            ("xm block-configure deb '' xvdd:cdrom r", "take the disc out"),
        ),
    ),
    "block-detach": Page(
        "<Domain> <DevId> [-f|--force]",
        "Take a virtual disk away from a domain.",
        """\
DevId is the disk's name or number. The domain is asked to let go of it; one
that does not in ten seconds makes this fail, and loses the disk when it lets
go of it. By force it loses the disk at once, with what it has not written.""",
        (("-f, --force", "whether the domain lets go of it or not"),),
        (("xm block-detach deb xvdb", "deb has no xvdb any more"),),
    ),
    "block-list": Page(
        "<Domain> [-l|--long]",
        "List the virtual disks of a domain.",
        "The state is 4 when a disk is connected. A domain without disks has no list.",
        (("-l, --long", "all entries of the domain's half, as s-expressions"),),
        (("xm block-list deb", "the disks of deb"),),
    ),
    "block-resize": Page(
        "<Domain> <DevId>",
        "Let a domain see the new size of an image.",
        "Not in the original xm. Enlarge the image first; the domain need not stop.",
        examples=(("xm block-resize deb xvdb", "after truncate -s 8G d.img, for example"),),
    ),
    "console": Page(
        "[-q] <Domain>",
        "Attach to the console of a domain.",
        """\
Shows what the domain has printed lately, then all it prints, and sends it
what you type. Several people may attach at once. Ctrl-] leaves; the domain
goes on. Without a terminal, stdin and stdout are carried as they are until
the domain ends.""",
        (("-q, --quiet", "no message when there is no such domain"),),
        (("xm console deb", "attach to the console of deb"),),
    ),
    "create": Page(
        "<ConfigFile> [options] [vars]",
        "Create a domain from a configuration file and start it.",
        _VARS,
        (
            *_CREATE_OPTIONS[:4],
            _CREATE_OPTIONS[4],
            ("-p, --paused", "leave the domain paused"),
            ("-c, --console_autoconnect", "attach to the console; none of its output is missed"),
            _CREATE_OPTIONS[5],
        ),
        (
            ("xm create deb.cfg", "start the domain of deb.cfg"),
            ("xm create deb.cfg -c memory=512", "with 512 MiB, and attach to its console"),
            ("xm create -n deb.cfg", "only show what would be asked of xend"),
        ),
    ),
    "debug-keys": Page(
        "<Keys>",
        "Send debug keys to the hypervisor.",
        "What the keys ask for is printed on the hypervisor's console, see xm dmesg. The key h lists them.",
        examples=(("xm debug-keys h", "list the keys"),),
    ),
    "delete": Page(
        "<DomainName>",
        "Remove a managed domain that is not running.",
        "Forgets a domain that was added with xm new.",
        examples=(("xm delete deb", "forget deb"),),
    ),
    "destroy": Page(
        "<Domain>",
        "Terminate a domain immediately.",
        """\
Like pulling the plug: the domain gets no chance to shut down. It also removes
a domain that is kept after its end, and one that xend does not know, which
xm list shows as (unknown-N).""",
        examples=(("xm destroy deb", "end deb now"),),
    ),
    "dmesg": Page(
        "[-c]",
        "Print the messages of the hypervisor.",
        options=(("-c, --clear", "print them and empty the buffer"),),
        examples=(("xm dmesg | tail", "the latest messages"),),
    ),
    "domid": Page(
        "<DomainName>",
        "Print the id of a domain.",
        "Prints None for a managed domain that is not running.",
        examples=(("xm domid deb", "prints, for example, 3"),),
    ),
    "domname": Page(
        "<DomId>",
        "Print the name of a domain.",
        examples=(("xm domname 3", "prints, for example, deb"),),
    ),
    "domstate": Page(
        "<Domain>",
        "Print the state of a domain in a word.",
        "One of shutoff, idle, shutdown, running, crashed, paused, paused by admin.",
        examples=(("xm domstate deb", "prints, for example, idle"),),
    ),
    "help": Page(
        "[Command]",
        "List all commands, or explain one.",
        examples=(("xm help create", "explain create"),),
    ),
    "info": Page(
        "[-n]",
        "Print facts about the host.",
        "One fact a line, as `name : value`.",
        (("-n, --numa", "with the topology of CPUs and memory"),),
        (("xm info | grep free_memory", "MiB left for domains"),),
    ),
    "list": Page(
        "[options] [Domain, ...]",
        "List all domains, or some.",
        """\
Memory is what the domain has now, in MiB. The six letters of the state are
r running, b blocked, p paused, s shut down, c crashed, d dying. A managed
domain that is not running has neither id nor state. A domain of the
hypervisor that xend does not know is shown as (unknown-ID).""",
        (
            ("-l, --long", "print all of each domain as an s-expression"),
            (
                "--state=STATE",
                "only those halted, paused, running, suspended, shutdown or crashed",
            ),
            ("--pool=POOL", "only domains of this CPU pool"),
        ),
        (("xm list", "all domains"), ("xm list --long deb", "everything about deb")),
    ),
    "log": Page("", "Print the log of xend.", examples=(("xm log | tail", "its latest lines"),)),
    "mem-max": Page(
        "<Domain> <Mem>",
        "Set the most memory a domain may have.",
        "In MiB, or with a suffix k, m or g.",
        examples=(("xm mem-max deb 1g", "at most 1 GiB"),),
    ),
    "mem-set": Page(
        "<Domain> <Mem>",
        "Set how much memory a domain should have.",
        """\
In MiB, or with a suffix k, m or g. The domain gives up or takes memory by its
balloon driver, in its own time, up to the maxmem of its configuration.""",
        examples=(("xm mem-set deb 192", "192 MiB"),),
    ),
    "network-attach": Page(
        "<Domain> [mac=<MAC>] [bridge=<Network>] [rate=<Rate>] [ip=<IP>] [vifname=<Name>]",
        "Give a domain another virtual network interface.",
        _VIF,
        examples=(
            ("xm network-attach deb", "another interface for deb"),
            ("xm network-attach deb bridge=lan rate=10Mb/s", "one on the network lan, slowed down"),
        ),
    ),
    "network-detach": Page(
        "<Domain> <DevId> [-f|--force]",
        "Take a virtual network interface away from a domain.",
        "DevId is the interface's number or its MAC address. As for block-detach.",
        (("-f, --force", "whether the domain lets go of it or not"),),
        (("xm network-detach deb 1", "deb has no second interface any more"),),
    ),
    "network-list": Page(
        "<Domain> [-l|--long]",
        "List the virtual network interfaces of a domain.",
        "The state is 4 when an interface is connected. A domain without any has no list.",
        (("-l, --long", "all entries of the domain's half, as s-expressions"),),
        (("xm network-list deb", "the interfaces of deb"),),
    ),
    "new": Page(
        "<ConfigFile> [options] [vars]",
        "Add a domain to those xend manages, without starting it.",
        _VARS,
        _CREATE_OPTIONS,
        (("xm new deb.cfg", "add the domain of deb.cfg"), ("xm start deb", "start it")),
    ),
    "pause": Page(
        "<Domain>",
        "Stop a domain where it is.",
        "It keeps its memory and gets no CPU until xm unpause.",
        examples=(("xm pause deb", "stop deb"),),
    ),
    "reboot": Page(
        "<Domain> [-wa]",
        "Ask a domain to reboot.",
        """\
What follows is what on_reboot in its configuration says. A domain that would
restart within a minute of its last restart is destroyed instead.""",
        (("-a, --all", "all domains"), ("-w, --wait", "wait until they have rebooted")),
        (("xm reboot -w deb", "reboot deb and wait for it"),),
    ),
    "rename": Page(
        "<Domain> <NewName>",
        "Give a domain another name.",
        examples=(("xm rename deb web", "deb is called web from now on"),),
    ),
    "sched-credit": Page(
        "[-d <Domain> [-w WEIGHT] [-c CAP]]",
        "Show or set the weight and cap of the credit scheduler.",
        """\
A domain of twice the weight gets twice the CPU time when CPUs are short. The
cap is the most it gets in any case, in percent of one CPU; 0 is no cap.""",
        (
            ("-d, --domain=DOMAIN", "the domain"),
            ("-w, --weight=WEIGHT", "1 to 65535; 256 is the default"),
            ("-c, --cap=CAP", "percent of one CPU"),
        ),
        (
            ("xm sched-credit", "show all"),
            ("xm sched-credit -d deb -w 512", "twice the usual weight for deb"),
        ),
    ),
    "shutdown": Page(
        "<Domain> [-waRH]",
        "Ask a domain to shut down.",
        """\
The domain is asked, so it needs a kernel that listens. What follows its end
is what on_poweroff in its configuration says.""",
        (
            ("-a, --all", "all domains"),
            ("-w, --wait", "wait until they have ended"),
            ("-H, --halt", "halt"),
            ("-R, --reboot", "reboot"),
        ),
        (("xm shutdown -w deb", "shut deb down and wait"), ("xm shutdown -a", "shut all domains down")),
    ),
    "start": Page(
        "<DomainName> [-p] [-c]",
        "Start a managed domain.",
        options=(
            ("-p, --paused", "leave it paused"),
            ("-c, --console_autoconnect", "attach to its console"),
        ),
        examples=(("xm start deb -c", "start deb and attach to its console"),),
    ),
    "sysrq": Page(
        "<Domain> <letter>",
        "Send a magic SysRq letter to the kernel of a domain.",
        examples=(("xm sysrq deb s", "Linux: sync the file systems"),),
    ),
    "unpause": Page(
        "<Domain>", "Let a paused domain go on.", examples=(("xm unpause deb", "let deb go on"),)
    ),
    "uptime": Page(
        "[-s] [Domain, ...]",
        "Print how long domains have been running.",
        options=(("-s, --short", "one short line each, in the style of uptime(1)"),),
        examples=(("xm uptime deb", "since when deb runs"),),
    ),
    "vcpu-list": Page(
        "[Domain, ...]",
        "List the virtual CPUs of all domains, or some.",
        """\
Shows where each runs or ran last, its state (r running, b blocked, p off),
its CPU time and the CPUs it may run on.""",
        examples=(("xm vcpu-list deb", "the virtual CPUs of deb"),),
    ),
    "vcpu-pin": Page(
        "<Domain> <VCPU|all> <CPUs|all>",
        "Set which CPUs a virtual CPU may run on.",
        "CPUs are numbers and ranges such as 0-3,5; ^2 takes one out again.",
        examples=(("xm vcpu-pin deb all 0-1", "deb runs on CPUs 0 and 1 only"),),
    ),
}

KEYS: tuple[tuple[str, str], ...] = (
    ("name=NAME", "the domain's name; without it, the name of the file"),
    ("uuid=UUID", "its UUID; without it, a random one"),
    ("description=TEXT", "any text"),
    ("builder=linux|generic", "how it starts; both mean a PV kernel"),
    ("type=pv", "what kind of guest; xl's word for builder"),
    ("kernel=FILE", "the kernel; python:MODULE or python:FILE.py for a guest written in Python"),
    ("ramdisk=FILE", "the initial ramdisk"),
    ("loader=FILE", "for HVM domains; kept; generic is what every PV kernel has"),
    ("root=DEVICE", "adds root=DEVICE to the kernel's command line"),
    ("extra=TEXT", "the rest of the kernel's command line"),
    ("cmdline=TEXT", "the same; xl's word"),
    ("ip=IP", "adds ip=... to the command line, with the six keys below"),
    ("gateway=IP", "for ip="),
    ("netmask=MASK", "for ip="),
    ("hostname=NAME", "for ip="),
    ("interface=NAME", "for ip=; eth0 if not given"),
    ("dhcp=off|dhcp", "for ip=; off if not given"),
    ("nfs_server=IP", "for ip= and nfs_root"),
    ("nfs_root=PATH", "adds nfsroot=... to the command line"),
    ("memory=MIB", "memory at the start; 128 if not given"),
    ("maxmem=MIB", "the most it may grow to; as memory if not given"),
    ("shadow_memory=MIB", "for HVM domains; kept"),
    ("vcpus=N", "virtual CPUs; 1 if not given"),
    ("maxvcpus=N", "how many there are, of which vcpus are used"),
    ("vcpu_avail=BITS", "which of them are used, a bit each"),
    ("max_event_channels=N", "the highest event channel port; 1023 if not given"),
    ("cpuid='host,NAME=0,...'", "CPU features it goes without; or xend's ['LEAF:REGISTER=BITS', ...]"),
    ("cpuid_check=[...]", "the same: what the host's CPU must have for the domain to start"),
    ("cpu=N", "the CPU of the first virtual one"),
    ("cpus=CPUS", "CPUs for all, such as 0-3,^2, or a list with one for each"),
    ("cpu_weight=N", "share of the CPU time when it is short; 256 if not given"),
    ("cpu_cap=PERCENT", "the most of one CPU; 0 for no limit"),
    ("pool=NAME", "CPU pool; only Pool-0 yet"),
    ("disk=UNAME,VDEV,MODE", "a virtual disk: file:/d.img,xvda,w; see xm help block-attach"),
    ("vif=KEY=VALUE,...", "a network interface: bridge=xenbr0,mac=...; see xm help network-attach"),
    ("nics=N", "at least so many network interfaces"),
    ("on_poweroff=ACTION", "destroy, restart, preserve or rename-restart; destroy if not given"),
    ("on_reboot=ACTION", "the same; restart if not given"),
    ("on_crash=ACTION", "also coredump-destroy and coredump-restart; restart if not given"),
    ("restart=WHEN", "onreboot, always or never: an old word for the three above"),
    ("on_xend_start=ACTION", "ignore or start"),
    ("on_xend_stop=ACTION", "ignore or shutdown"),
    ("features=TEXT", "features of the PV kernel; kept"),
    ("localtime=0|1", "kept"),
    ("rtc_timeoffset=SECONDS", "kept"),
    ("nomigrate=0|1", "kept"),
    ("s3_integrity=0|1", "kept"),
    ("oos=0|1", "kept"),
)
"""What `xm create --help_config` says of the keys of a configuration file."""

_LATER: dict[str, str] = {
    "suspend": "Suspend a managed domain to disk.",
    "resume": "Resume a managed domain from disk.",
    "reset": "Reset a domain at once.",
    "save": "Save a domain to a file.",
    "restore": "Restore a domain from a file.",
    "migrate": "Move a domain to another host.",
    "dump-core": "Write the memory of a domain to a file.",
    "top": "Watch the domains in real time.",
    "shell": "Enter commands one after the other.",
    "event-monitor": "Print events of the Xen-API.",
    "serve": "Carry XML-RPC over stdin and stdout.",
    "vncviewer": "Attach to the framebuffer of a domain.",
    "vcpu-set": "Set how many virtual CPUs a domain uses.",
    "sched-credit2": "Show or set parameters of the credit2 scheduler.",
    "sched-sedf": "Show or set parameters of the EDF scheduler.",
    "trigger": "Send an NMI, a reset or another trigger to a domain.",
    "dry-run": "Test whether a domain may use its resources.",
}

_FAMILIES = (
    ("network2-", "Virtual network interfaces of version 2."),
    ("vnet-", "Virtual networks."),
    ("pci-", "PCI pass-through."),
    ("scsi-", "Virtual SCSI."),
    ("usb-", "Virtual USB."),
    ("cpupool-", "Pools of CPUs."),
    ("tmem-", "Transcendent memory."),
    ("", "Security labels and policies."),
)

COMMON = (
    "console create new delete destroy help list mem-set pause reboot shutdown start unpause uptime"
    " domstate".split()
)

_USAGE = "Usage: xm [--host NAME] <subcommand> [args]\n\nControl, list, and manipulate Xen guest instances.\n"
_FOOTER = """
<Domain> can either be the Domain Name or Id.
For help on a command: xm help <subcommand>.
The host is chosen by --host or UMXEN_HOST; XM_SERVER=<uri> talks to another
xend (httpu:///path.sock, https://user:password@host:port)."""


def summary(command: str) -> str:
    if command in PAGES:
        return PAGES[command].summary
    if command in _LATER:
        return _LATER[command]
    return next(text for prefix, text in _FAMILIES if command.startswith(prefix))


def page(command: str) -> str:
    """Everything about a command: usage, description, options, examples."""
    if command not in PAGES:
        return f"Usage: xm {command}\n\n{summary(command)} This command is not built yet."
    entry = PAGES[command]
    parts = [f"Usage: xm {command} {entry.arguments}".rstrip(), entry.summary]
    if entry.text:
        parts.append(entry.text)
    if entry.options:
        parts.append("Options:\n" + _pairs(entry.options))
    if entry.examples:
        parts.append("Examples:\n" + _pairs(entry.examples))
    return "\n\n".join(parts)


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"  {word:<31} {meaning}" for word, meaning in pairs)


def keys(known: Iterable[str]) -> str:
    """All keys of configuration files: those with a meaning, then the rest of `known`."""
    described = {word.partition("=")[0] for word, _ in KEYS}
    rest = " ".join(sorted(set(known) - described))
    text = f"Keys of a configuration file, and names of vars:\n\n{_pairs(KEYS)}"
    return f"{text}\n\nNot built yet, and refused unless they ask for nothing:\n  {_wrapped(rest)}"


def _wrapped(text: str) -> str:
    from textwrap import wrap

    return "\n  ".join(wrap(text, 90))


def _table(commands: list[str]) -> str:
    return "\n".join(f" {command:<28} {summary(command)}" for command in commands)


def short_help() -> str:
    """What `xm` alone prints."""
    lines = f"{_USAGE}\nCommon 'xm' commands:\n\n{_table(list(COMMON))}\n{_FOOTER}"
    return lines + "\nFor a complete list of subcommands run 'xm help'."


def long_help() -> str:
    """What `xm help` prints."""
    built = _table(sorted([*BUILT, "help"]))
    later = _table(sorted(NOT_BUILT))
    return f"{_USAGE}\nxm full list of subcommands:\n\n{built}\n\nNot built yet:\n\n{later}\n{_FOOTER}"
