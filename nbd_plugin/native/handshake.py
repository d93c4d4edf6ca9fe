"""The fixed newstyle handshake, server side: from the greeting to an export that is open.

Rules:
1. Bytes in through the Inbox, answers out through `take_output`, and one question: may this client
   have this export (Wanted)? The caller answers it by grant() or refuse() before it goes on.
2. Every length is checked against what it may be before it is waited for. A malformed option gets
   an error reply if the protocol has one for it; else the handshake ends, with the reason in
   `ended`. Nothing a client sends raises an exception.
3. There is no TLS here. At STARTTLS the phase is SECURING: the caller begins TLS on the connection,
   and then says so by secured(). What was agreed in clear is forgotten, and what was sent in clear
   behind STARTTLS ends the handshake: somebody on the way could have put it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from nbd_plugin.native import wire
from nbd_plugin.native.inbox import Inbox
from nbd_plugin.native.wire import Answer, ExportFlag, HandshakeFlag, Info, Option

OPTION_DATA_MAX = 64 * 1024
KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
IN_CLEAR = frozenset({Option.ABORT, Option.STARTTLS})
"""What a client may say before TLS where that is required."""
OPTIONS_MAX = 1000
"""Who has sent so many does not want an export."""


class Tls(Enum):
    """What the server says to STARTTLS, and to a client that does without."""

    NONE = "none"
    OFFERED = "offered"
    REQUIRED = "required"


class Phase(Enum):
    CLIENT_FLAGS = "client flags"
    OPTIONS = "options"
    SECURING = "securing"
    ASKED = "asked"
    TRANSMISSION = "transmission"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client asks for an export. keep: False if it only wants to know about it."""

    export: int
    keep: bool


class Malformed(Exception):
    """The data of an option does not add up; the text says how."""


class Fields:
    """Reads the fields of an option's data one by one. Raises Malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u16(self) -> int:
        return int(wire.U16.unpack(self._bytes(2))[0])

    def u32(self) -> int:
        return int(wire.U32.unpack(self._bytes(4))[0])

    def text(self) -> str:
        return decoded(self._bytes(self.u32()))

    def end(self) -> None:
        if self._at != len(self._data):
            raise Malformed(f"{len(self._data) - self._at} bytes too many")

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise Malformed("the data ends within a field")
        self._at += count
        return self._data[self._at - count : self._at]


def decoded(name: bytes) -> str:
    """What is no UTF-8 stays distinguishable and matches no export."""
    return name.decode(errors="backslashreplace")


class Handshake:
    """exports: (number, description) in the order they are listed; "" means the first.

    Call next() whenever bytes have arrived, until it returns None; then look at `phase`.
    """

    def __init__(
        self, inbox: Inbox, exports: Sequence[tuple[int, str]], tls: Tls = Tls.NONE
    ) -> None:
        self.phase = Phase.CLIENT_FLAGS
        self.ended = ""
        self.structured = False
        self.allocation = False
        """The client asked for block status, and for the export that it then got."""
        self._inbox = inbox
        self._exports = dict(exports)
        self._output = [wire.greeting()]
        self._tls = tls
        self._secure = False
        self._fixed = False
        self._padding = wire.EXPORT_PADDING
        self._options = 0
        self._context_export: int | None = None
        self._asked = 0
        self._asked_export = 0
        self._asked_infos: set[int] = set()
        self._handlers: dict[int, Callable[[int, bytes], Wanted | None]] = {
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._starttls,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._meta_context,
            Option.SET_META_CONTEXT: self._meta_context,
        }

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output, self._output = self._output, []
        return b"".join(output)

    def next(self) -> Wanted | None:
        """Work off what has arrived. None: more bytes are needed, or the handshake is over."""
        wanted: Wanted | None = None
        if self.phase is Phase.CLIENT_FLAGS:
            self._client_flags()
        while self.phase is Phase.OPTIONS and wanted is None:
            if (found := self._option()) is None:
                return None
            wanted = self._handle(*found)
        return wanted

    def secured(self) -> None:
        """TLS has begun: whatever arrives from now on came through it."""
        self._secure = True
        self.phase = Phase.OPTIONS

    def grant(self, size: int, *, read_only: bool = False) -> None:
        """The export of the last Wanted exists, has `size` bytes, and is open if it is to be kept."""
        flags = (
            ExportFlag.HAS_FLAGS
            | ExportFlag.SEND_FLUSH
            | ExportFlag.SEND_FUA
            | ExportFlag.SEND_TRIM
            | ExportFlag.SEND_WRITE_ZEROES
            | ExportFlag.CAN_MULTI_CONN
        )
        if self.structured:
            flags |= ExportFlag.SEND_DF
        if read_only:
            flags |= ExportFlag.READ_ONLY
        if self._asked == Option.EXPORT_NAME:
            self._output.append(wire.EXPORT.pack(size, flags) + self._padding)
        else:
            self._send_infos(size, flags)
        if self._asked == Option.INFO:
            self.phase = Phase.OPTIONS
            return
        self.allocation = self._context_export == self._asked_export
        self.phase = Phase.TRANSMISSION

    def refuse(self, message: str, answer: Answer = Answer.ERR_POLICY) -> None:
        """The client may not have it; it is told why if it asked in a way that lets it."""
        if self._asked == Option.EXPORT_NAME:
            self._end(message)
            return
        self._output.append(wire.option_error(self._asked, answer, message))
        self.phase = Phase.OPTIONS

    # Parsing.

    def _end(self, reason: str) -> None:
        self.phase = Phase.ENDED
        self.ended = reason

    def _client_flags(self) -> None:
        inbox = self._inbox
        if inbox.end - inbox.start < wire.CLIENT_FLAGS.size:
            return
        flags: int = wire.CLIENT_FLAGS.unpack_from(inbox.buffer, inbox.start)[0]
        inbox.start += wire.CLIENT_FLAGS.size
        if flags & ~KNOWN_FLAGS:
            self._end(f"unknown client flags {flags:#x}")
            return
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        if flags & HandshakeFlag.NO_ZEROES:
            self._padding = b""
        self.phase = Phase.OPTIONS

    def _option(self) -> tuple[int, bytes] | None:
        """(option, its data) once all of it is here."""
        inbox = self._inbox
        here = inbox.end - inbox.start
        if here < wire.OPTION.size:
            return None
        magic, option, length = wire.OPTION.unpack_from(inbox.buffer, inbox.start)
        if magic != wire.OPTION_MAGIC:
            self._end(f"an option begins with {magic!r}, expected {wire.OPTION_MAGIC!r}")
            return None
        if length > OPTION_DATA_MAX:
            self._end(f"option {option} has {length} bytes of data, at most {OPTION_DATA_MAX}")
            return None
        if here < wire.OPTION.size + length:
            return None
        data = inbox.take(inbox.start + wire.OPTION.size, length)
        inbox.start += wire.OPTION.size + length
        self._options += 1
        if self._options > OPTIONS_MAX:
            self._end(f"more than {OPTIONS_MAX} options")
            return None
        return option, data

    def _handle(self, option: int, data: bytes) -> Wanted | None:
        if not self._secure and self._tls is Tls.REQUIRED and option not in IN_CLEAR:
            self._demand_tls(option)
            return None
        if option == Option.EXPORT_NAME:
            return self._export_name(data)
        if not self._fixed:
            self._end(f"option {option} from a client that knows only EXPORT_NAME")
            return None
        handler = self._handlers.get(option)
        if handler is None:
            self._error(option, Answer.ERR_UNSUP, "this server does not know that option")
            return None
        try:
            return handler(option, data)
        except Malformed as problem:
            self._error(option, Answer.ERR_INVALID, str(problem))
            return None

    def _demand_tls(self, option: int) -> None:
        if option == Option.EXPORT_NAME:
            self._end("TLS is required")  # there is no way to answer this option by an error
        else:
            self._error(
                option, Answer.ERR_TLS_REQD, "this server requires TLS: send STARTTLS first"
            )

    def _reply(self, option: int, answer: Answer, data: bytes = b"") -> None:
        self._output.append(wire.option_reply(option, answer, data))

    def _error(self, option: int, answer: Answer, message: str) -> None:
        self._output.append(wire.option_error(option, answer, message))

    # Options.

    def _export_name(self, data: bytes) -> Wanted | None:
        name = decoded(data)
        export = self._find(name)
        if export is None:
            self._end(self._no_export(name))
            return None
        return self._ask(Option.EXPORT_NAME, export, set())

    def _abort(self, option: int, data: bytes) -> None:
        self._reply(option, Answer.ACK)
        self._end("")

    def _list(self, option: int, data: bytes) -> None:
        Fields(data).end()
        for number, description in self._exports.items():
            self._reply(option, Answer.SERVER, wire.text(str(number)) + description.encode())
        self._reply(option, Answer.ACK)

    def _starttls(self, option: int, data: bytes) -> None:
        Fields(data).end()
        if self._tls is Tls.NONE:
            self._error(option, Answer.ERR_POLICY, "this server offers no TLS")
        elif self._secure:
            self._error(option, Answer.ERR_INVALID, "TLS is in use already")
        elif self._inbox.start != self._inbox.end:
            self._end("bytes in clear behind STARTTLS")
        else:
            self._reply(option, Answer.ACK)
            self.structured = False
            self._context_export = None
            self.phase = Phase.SECURING

    def _info(self, option: int, data: bytes) -> Wanted | None:
        fields = Fields(data)
        name = fields.text()
        infos = {fields.u16() for _ in range(fields.u16())}
        fields.end()
        export = self._export_of(option, name)
        return None if export is None else self._ask(option, export, infos)

    def _structured_reply(self, option: int, data: bytes) -> None:
        Fields(data).end()
        self.structured = True
        self._reply(option, Answer.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        fields = Fields(data)
        name = fields.text()
        queries = [fields.text() for _ in range(self._count(fields))]
        fields.end()
        if not self.structured:
            raise Malformed("structured replies have to be agreed first")
        if option == Option.SET_META_CONTEXT:
            self._context_export = None
        export = self._export_of(option, name)
        if export is None:
            return
        if option == Option.SET_META_CONTEXT:
            found = wire.ALLOCATION in queries
            self._context_export = export if found else None
        else:
            found = not queries or bool({wire.ALLOCATION, "base:"} & set(queries))
        if found:
            number = wire.ALLOCATION_ID if option == Option.SET_META_CONTEXT else 0
            context = wire.U32.pack(number) + wire.ALLOCATION.encode()
            self._reply(option, Answer.META_CONTEXT, context)
        self._reply(option, Answer.ACK)

    @staticmethod
    def _count(fields: Fields) -> int:
        """How many texts follow; no more than there can be in the data."""
        count = fields.u32()
        if count > OPTION_DATA_MAX // 4:
            raise Malformed(f"{count} queries cannot be in so little data")
        return count

    # Exports.

    def _find(self, name: str) -> int | None:
        if name == "":
            return next(iter(self._exports), None)
        return next((number for number in self._exports if str(number) == name), None)

    def _no_export(self, name: str) -> str:
        known = ", ".join(str(number) for number in self._exports)
        return f"no export '{name[:80]}', there are {known}"

    def _export_of(self, option: int, name: str) -> int | None:
        """The export of that name; if there is none the client is told."""
        if len(name) > wire.STRING_MAX:
            self._error(option, Answer.ERR_TOO_BIG, f"names have at most {wire.STRING_MAX} bytes")
            return None
        export = self._find(name)
        if export is None:
            self._error(option, Answer.ERR_UNKNOWN, self._no_export(name))
        return export

    def _ask(self, option: int, export: int, infos: set[int]) -> Wanted:
        self.phase = Phase.ASKED
        self._asked, self._asked_export, self._asked_infos = option, export, infos
        return Wanted(export, keep=option != Option.INFO)

    def _send_infos(self, size: int, flags: int) -> None:
        number, infos = self._asked_export, self._asked_infos
        self._reply(self._asked, Answer.INFO, wire.export_info(size, flags))
        if Info.NAME in infos:
            self._reply(self._asked, Answer.INFO, wire.text_info(Info.NAME, str(number)))
        if Info.DESCRIPTION in infos:
            description = wire.text_info(Info.DESCRIPTION, self._exports[number])
            self._reply(self._asked, Answer.INFO, description)
        if Info.BLOCK_SIZE in infos:
            self._reply(self._asked, Answer.INFO, wire.block_size_info())
        self._reply(self._asked, Answer.ACK)
