"""A guest without a kernel, and nothing mounted: it reads its disk once and then answers ping.

    xm create -c examples/ping_disk.cfg

`extra` may hold ip=ADDRESS; otherwise it asks for a lease. Its whole world is domu/domain.py.
"""

import hashlib

import trio

from domu.domain import Domain
from domu.guests import ip

CHUNK = 2048  # sectors


async def main(domain: Domain) -> None:
    settings = dict(word.split("=", 1) for word in domain.words if "=" in word)
    async with domain.disk("xvda") as disk, domain.nic() as nic:
        digest, began = hashlib.sha256(), trio.current_time()
        for sector in range(0, disk.sectors, CHUNK):
            digest.update(await disk.read(sector, min(CHUNK, disk.sectors - sector)))
        seconds = trio.current_time() - began
        print(f"xvda: {disk.sectors} sectors in {seconds:.2f} s, sha256 {digest.hexdigest()}")
        host = ip.Host(nic.mac, settings.get("ip") or (await ip.dhcp(nic)).address)
        print(f"eth0: {host.address}, answering ping")
        await ip.serve(nic, host)
