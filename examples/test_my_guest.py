"""How to test a guest of your own: the fixtures come with umxen's pytest plugin, nothing is to be imported.

Run it with `pytest examples/test_my_guest.py`. `guest` is Debian's kernel with busybox at a shell's prompt;
`boot` starts any PV kernel, with the keys of an xm config file as arguments.
"""


def test_a_command_in_the_guest(guest):
    result = guest.run("uname -s; exit 3")
    assert result.output == "Linux\n"
    assert result.status == 3


def test_its_console(guest):
    guest.console.send_line("echo 6 times 7 is $((6 * 7))")
    assert guest.console.expect("times 7 is 42").text


def test_its_life(guest, host):
    guest.pause()
    assert guest.wait_state("paused")
    guest.unpause()
    assert guest.name in host.xm("list").stdout
    guest.shutdown()
    assert guest.state() == "gone"


def test_a_kernel_of_mine(boot, small_kernel):
    guest = boot(kernel=small_kernel, memory=8, extra="hello", on_poweroff="preserve")
    guest.console.expect("hello from domain")
    guest.wait_state("shutdown")
