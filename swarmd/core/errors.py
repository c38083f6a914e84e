"""Every error that swarmd raises on purpose, in one tree.

The transport's view of these (gRPC status codes) is `swarmd.wire.status`'s business.

    SwarmdError
      . UsageError              the caller's input is wrong: exit code 2
         . ModelError            the model cannot be found, read or split
         . WeightsError          a weights file is damaged or does not fit the config
         . RequestError          a generation request that can never succeed
           . PromptTooLong       prompt + max_tokens do not fit the model or the KV budget
           . UnknownModel        no node of the swarm serves that model name
             . AmbiguousModel    several models go by it
         . ConfigError           a bad flag, environment variable or TOML key
      . CapacityError           try again later: `retry_after_s` says when
         . KVExhausted           no room in the KV budget now
         . QueueFull             a bounded queue is full
      . CoverageError           blocks that no live peer holds
      . SessionError            one session failed; others do not notice
         . SessionLost           a session that no hop knows (expired, closed, wrong secret)
         . LeaseEnded            a session to go on from is no longer kept: send the whole prompt
         . DeadlineExceeded      the request's own deadline passed
      . PeerError               a peer broke a rule or cannot be reached
         . ProtocolError         a malformed or forbidden message
         . PeerUnreachable       dial failed, link broken, or silent for too long
           . NodeLoading         a node that answers, but loads its model: `retry_after_s`
         . WrongModel            the peer serves other weights than announced
      . HubError                the model hub refused or cannot be reached
         . HubRefused            no such model or revision, or no right to it: a UsageError too
      . DirectoryError          the DHT (or its process) cannot be reached
"""

from __future__ import annotations

from collections.abc import Sequence


class SwarmdError(Exception):
    """Base of all errors raised on purpose. `str(error)` says what was wrong and what to do."""


class UsageError(SwarmdError):
    """The caller's input is wrong; repeating it will not help."""


class ModelError(UsageError):
    """The model cannot be found, read or split into spans."""


class WeightsError(UsageError):
    """A weights file is damaged, truncated or does not match the config."""


class ConfigError(UsageError):
    """A flag, environment variable or configuration key is unknown or out of range."""


class RequestError(UsageError):
    """A generation request that no swarm could ever fulfil as it stands."""


class PromptTooLong(RequestError):
    """Prompt plus requested tokens exceed the model's length or every stage's KV budget."""


class UnknownModel(RequestError):
    """The request names a model that nobody in the swarm serves."""


class AmbiguousModel(UnknownModel):
    """Several models go by the name that the request gives; `NAME@DIGEST` names one."""


class CapacityError(SwarmdError):
    """There is no room now; the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KVExhausted(CapacityError):
    """The KV budget of a stage is in use by other sessions."""


class QueueFull(CapacityError):
    """A bounded queue is full."""


class CoverageError(SwarmdError):
    """No live peer holds some blocks of the model.

    `missing` lists them as half-open intervals `(start, end)`.
    """

    def __init__(self, message: str, missing: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class SessionError(SwarmdError):
    """One session failed; no other session is affected."""


class SessionLost(SessionError):
    """The session is not known here: closed, expired, or the secret does not match."""


class LeaseEnded(SessionError):
    """The session that a request goes on from is not kept any more: send the whole prompt."""


class DeadlineExceeded(SessionError):
    """The deadline of the request passed before it was finished."""


class PeerError(SwarmdError):
    """A peer broke a rule or cannot be reached."""


class ProtocolError(PeerError):
    """A message from the network was malformed, too large or not allowed here."""


class PeerUnreachable(PeerError):
    """A peer could not be dialled, its link broke, or it was silent for too long."""


class NodeLoading(PeerUnreachable):
    """The node answers, but loads its model; it may serve after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WrongModel(PeerError):
    """A peer serves other weights than the ones that were asked for."""


class HubError(SwarmdError):
    """The model hub refused the request or cannot be reached."""


class HubRefused(HubError, UsageError):
    """The hub has no such model, revision or file, or does not give it to this user."""


class DirectoryError(SwarmdError):
    """The directory (DHT child process) cannot be reached."""
