"""Reaching anybody: by address, by path, by name, by an inherited socket; being reached."""

from attacks.attack import Attack, heard, said

ATTACKS = (
    Attack(
        name="connects to a server over IPv4",
        judge=heard("tcp4"),
        source="""
def attack(item, number):
    socket.create_connection(("127.0.0.1", item["tcp4"]), timeout=2)
""",
    ),
    Attack(
        name="connects to a server over IPv6",
        judge=heard("tcp6"),
        source="""
def attack(item, number):
    socket.create_connection(("::1", item["tcp6"]), timeout=2)
""",
    ),
    Attack(
        name="sends a datagram over IPv4",
        judge=heard("udp4"),
        source="""
def attack(item, number):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", item["udp4"]))
    time.sleep(0.2)
""",
    ),
    Attack(
        name="sends a datagram over IPv6",
        judge=heard("udp6"),
        source="""
def attack(item, number):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"secret", ("::1", item["udp6"]))
    time.sleep(0.2)
""",
    ),
    Attack(
        name="opens a connection with the first data packet",
        judge=heard("tcp4"),
        source="""
def attack(item, number):
    caller = socket.socket()
    caller.sendto(b"secret", 0x20000000, ("127.0.0.1", item["tcp4"]))  # MSG_FASTOPEN
    time.sleep(0.2)
""",
    ),
    Attack(
        name="connects to a unix socket by path",
        judge=heard("unix_stream"),
        source="""
def attack(item, number):
    socket.socket(socket.AF_UNIX).connect(item["unix_stream"])
    time.sleep(0.2)
""",
    ),
    Attack(
        name="sends a datagram to a unix socket by path",
        judge=heard("unix_datagram"),
        source="""
def attack(item, number):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"secret", item["unix_datagram"])
    time.sleep(0.2)
""",
    ),
    Attack(
        name="sends over a pair's socket, which a filter may allow",
        judge=heard("abstract_datagram"),
        source="""
def attack(item, number):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = b"\\0" + item["abstract"].encode() + b"-datagram"
    near.connect(address)
    near.send(b"secret")
    time.sleep(0.2)
""",
    ),
    Attack(
        name="connects to an abstract unix socket",
        judge=heard("abstract_stream"),
        source="""
def attack(item, number):
    socket.socket(socket.AF_UNIX).connect(b"\\0" + item["abstract"].encode())
    time.sleep(0.2)
""",
    ),
    Attack(
        name="sends a datagram to an abstract unix socket",
        judge=heard("abstract_datagram"),
        source="""
def attack(item, number):
    address = b"\\0" + item["abstract"].encode() + b"-datagram"
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"secret", address)
    time.sleep(0.2)
""",
    ),
    Attack(
        name="listens on a port and is called from outside",
        judge=said,
        source="""
def attack(item, number):
    server = socket.create_server(("127.0.0.1", item["free_port"]))
    server.settimeout(1)
    return str(server.accept()[1])
""",
    ),
    Attack(
        name="listens on an abstract name and is called from outside",
        judge=said,
        source="""
def attack(item, number):
    server = socket.socket(socket.AF_UNIX)
    server.bind(b"\\0" + item["marker"].encode())
    server.listen()
    server.settimeout(1)
    return str(server.accept()[0])
""",
    ),
    Attack(
        name="writes into sockets that it inherited",
        judge=heard("inherited"),
        source="""
def attack(item, number):
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, b"secret")
        except OSError:
            pass
""",
    ),
    Attack(
        name="asks the kernel for the network interfaces",
        source="""
def attack(item, number):
    return [name for _, name in socket.if_nameindex() if name != "lo"]
""",
    ),
    Attack(
        name="speaks netlink to the kernel",
        source="""
def attack(item, number):
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.send(struct.pack("IHHII", 17, 18, 0x301, 1, 0) + b"\\0")
    return len(link.recv(1 << 16))
""",
    ),
    Attack(
        name="opens a socket to the hypervisor",
        source="""
def attack(item, number):
    return str(socket.socket(40, socket.SOCK_STREAM))  # AF_VSOCK
""",
    ),
    Attack(
        name="opens a raw socket",
        needs_root=True,
        source="""
def attack(item, number):
    return first(
        lambda: str(socket.socket(17, socket.SOCK_RAW, 0x0300)),  # AF_PACKET
        lambda: str(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    )
""",
    ),
)
