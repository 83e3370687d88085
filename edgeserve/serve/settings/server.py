"""What can be set for one server: the declarations, the checks of what must fit together, and one model's settings."""

# Annotations are not strings here: `run --help` would have to compile a hundred of them.
import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec

from edgeserve.errors import UsageError
from edgeserve.names import NAME, NAME_RULE
from edgeserve.serve.access import LOCALHOST
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.model import SECONDS, ModelTable, PerLevel, PerModel
from edgeserve.serve.settings.protocols import DEFAULT, protocols_of
from edgeserve.serve.settings.setting import Group, Setting, Unit, check, said, taken

if TYPE_CHECKING:
    from edgeserve.serve.access.keys import Keys
    from edgeserve.serve.access.tls import Tls

_HINT = "add --keys FILE or --tls-cert and --tls-key, or --insecure if something else protects it"

_what = partial(Setting, Group.WHAT)
_batching = partial(Setting, Group.BATCHING)
_listening = partial(Setting, Group.LISTENING)
_limits = partial(Setting, Group.LIMITS)
_operations = partial(Setting, Group.OPERATIONS)
_port = partial(_listening, unit=Unit.PORT, ge=0, le=65535)
_file = partial(_limits, unit=Unit.PATH)


class Settings(PerModel, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one server. What serves is `bundle`, `bundles`, the models of the folder `repository`, and
    those of `[[model]]` tables, which may say otherwise for one model."""

    bundle: Annotated[
        str | None,
        _what(
            "Bundle, or [repository folder](repository.md), to serve",
            Unit.PATH,
            more="On the command line: `BUNDLE...`. In the file, paths are relative to the file",
            flag=None,
            followed=True,
        ),
    ] = None
    bundles: Annotated[
        tuple[str, ...],
        _what("Additional bundles or repository folders", Unit.PATH, flag=None, followed=True),
    ] = ()
    repository: Annotated[
        str | None,
        _what("[Repository folder](repository.md) to serve", Unit.PATH, flag=None, followed=True),
    ] = None
    tf_model_config: Annotated[
        str | None,
        _what(
            "TF Serving's model config file, with the models to serve",
            Unit.PATH,
            more="See [configuration files](coming-from/tf-serving.md#configuration-files)",
            metavar="FILE",
            followed=True,
        ),
    ] = None
    tf_batching: Annotated[
        str | None,
        _batching(
            "TF Serving's batching parameters file; the other settings override it",
            Unit.PATH,
            more="See [configuration files](coming-from/tf-serving.md#configuration-files)",
            metavar="FILE",
            followed=True,
        ),
    ] = None
    model: Annotated[
        tuple[ModelTable, ...],
        _what(
            "A bundle with settings of its own, or settings for [one model]"
            "(repository.md#settings-for-one-model) of the repository",
            flag=None,
            followed=True,
        ),
    ] = ()
    name: Annotated[
        str | None,
        _what(
            "The model's name in URLs, if you serve one bundle",
            default="the bundle's",
            followed=True,
        ),
    ] = None
    load: Annotated[
        tuple[str, ...] | None,
        _what(
            "Load only this model at start-up; repeatable",
            more="Clients can [load](protocols.md) the others",
            default="all",
            metavar="NAME",
        ),
    ] = None
    watch: Annotated[
        float,
        _what(
            "How often to look for changes in models and in the --config file; 0: only after SIGHUP",
            SECONDS,
            ge=0,
        ),
    ] = 0.0
    readiness: Annotated[
        Literal["all", "any"],
        _what(
            "Report ready if all models, or any model, are ready",
            more="See [readiness](operations.md#readiness)",
        ),
    ] = "all"
    memory_budget: Annotated[
        int | str,
        _what(
            "Approximate memory limit for loaded models, such as 2GB",
            Unit.SIZE,
            more="If a request needs a model that is not in memory, the server loads it first, and unloads those that were used least recently",
            default="unlimited",
        ),
    ] = 0
    cache: Annotated[
        int | str,
        _what("Memory for caching responses to identical inputs", Unit.SIZE, default="off"),
    ] = 0
    host: Annotated[
        str,
        _listening(
            "Address to listen on",
            default="localhost: 127.0.0.1 and, if available, ::1",
            env="EDGESERVE_HOST",
        ),
    ] = LOCALHOST
    http_port: Annotated[
        int, _port("HTTP port; 0 picks a free port and prints it", env="EDGESERVE_HTTP_PORT")
    ] = 8000
    grpc_port: Annotated[
        int | None,
        _port(
            "gRPC port, usually 8001; 0 picks a free port",
            more="[gRPC](protocols.md#grpc) requires `edgeserve[grpc]`",
            default="off",
            env="EDGESERVE_GRPC_PORT",
        ),
    ] = None
    grpc_compression: Annotated[
        bool, _listening("Compress large gRPC responses if the client accepts it")
    ] = False
    grpc_streams: Annotated[
        int, _listening("Maximum open gRPC streams; each stream takes two threads", ge=1)
    ] = 32
    protocols: Annotated[
        str | tuple[str, ...],
        _listening(
            "Protocols to serve beside v2: tfserving, torchserve, sagemaker, vertex, azureml, or all",
            more="Separate several with commas. Where two have the same route, the first has it. See [protocols](protocols.md)",
            default="tfserving",
            metavar="NAMES",
        ),
    ] = DEFAULT
    cloud: Annotated[
        Literal["sagemaker", "vertex", "azureml"] | None,
        _listening(
            "Serve as this cloud expects: its protocol, port and model folder",
            more="Flags and the file override it",
        ),
    ] = None
    workers: Annotated[
        int,
        _listening(
            "Server processes on one port", more="See [several processes](#several-processes)", ge=1
        ),
    ] = 1
    insecure: Annotated[
        bool,
        _listening(
            "Allow a --host that other machines can reach, even without keys or TLS",
            more="See [security](security.md)",
        ),
    ] = False
    max_body: Annotated[
        int | None,
        _limits(
            "Maximum size of a request's body",
            Unit.BYTES,
            default="64 MiB",
            ge=1,
            more="A larger body gets 413",
        ),
    ] = None
    limits: Annotated[Limits, _limits("[Limits](security.md#limits) on requests", flag=None)] = (
        Limits()
    )
    keys: Annotated[
        str | None,
        _file(
            "File with one API key per line: 'infer KEY' or 'control KEY'",
            more="Also `EDGESERVE_API_KEY`, `EDGESERVE_CONTROL_KEY`. See [security](security.md)",
            metavar="FILE",
        ),
    ] = None
    tls_cert: Annotated[
        str | None, _file("The server's certificate, with its chain", metavar="PEM")
    ] = None
    tls_key: Annotated[str | None, _file("Private key of the certificate", metavar="PEM")] = None
    tls_client_ca: Annotated[
        str | None,
        _file("Accept only clients with a certificate from these authorities", metavar="PEM"),
    ] = None
    model_control: Annotated[bool, _limits("Let clients load and unload models")] = False
    shared_memory: Annotated[
        str | tuple[str, ...],
        _limits(
            "Let clients register shared memory whose name starts with this; repeatable",
            metavar="PREFIX",
        ),
    ] = ()
    control_port: Annotated[
        int | None,
        _limits(
            "Separate port for management requests (the control plane)",
            Unit.PORT,
            default="the HTTP port",
            ge=0,
            le=65535,
        ),
    ] = None
    control_host: Annotated[
        str | None, _limits("Address of the separate control plane", default=LOCALHOST)
    ] = None
    control_names: Annotated[
        tuple[str, ...],
        _limits(
            "Additional host name that the control plane accepts; repeatable",
            flag="--control-name",
            metavar="HOST",
        ),
    ] = ()
    access_log: Annotated[bool, _operations("Log a line for every request")] = False
    log_format: Annotated[
        Literal["text", "json"],
        _operations("Format of log lines", more="See [logs](operations.md#logs)"),
    ] = "text"
    trace: Annotated[
        Literal["off", "otlp"],
        _operations(
            "otlp: export a trace of each inference to an OpenTelemetry collector",
            more="See [tracing](tracing.md)",
        ),
    ] = "off"
    metrics_compat: Annotated[
        Literal["none", "triton"],
        _operations(
            "triton: also export Triton's metrics", more="See [metrics](operations.md#metrics)"
        ),
    ] = "none"
    lame_duck: Annotated[
        float,
        _operations(
            "Time after SIGTERM during which the server is not ready but accepts connections",
            SECONDS,
            ge=0,
            more="See [life cycle](operations.md#life-cycle)",
        ),
    ] = 0.0
    drain_timeout: Annotated[
        float, _operations("Time to finish running requests after SIGTERM", SECONDS, ge=0)
    ] = 30.0

    def check(self) -> None:
        """Raise UsageError for what cannot work or must not be done silently."""
        check(self)
        check(self.limits, "limits.")
        protocols_of(self.protocols)
        self._check_models()
        self._check_access()

    def _check_access(self) -> None:
        from edgeserve.serve.access.keys import CONTROL_HINT, is_loopback

        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("tls_cert and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("tls_client_ca needs tls_cert and tls_key")
        if self.control_host is not None and self.control_port is None:
            raise UsageError("control_host needs control_port", hint="--control-port 8003")
        keys = self.read_keys()
        if not (self.insecure or is_loopback(self.host) or keys or self.tls_cert):
            raise UsageError(
                f"{self.host} is open to the network, and nothing protects the server", hint=_HINT
            )
        control = self.model_control or bool(self.shared_memory_prefixes)
        separate = self.control_port is not None
        address = (self.control_host or LOCALHOST) if separate else self.host
        if (control or separate) and not is_loopback(address) and not keys.control:
            raise UsageError(
                f"the control plane on {address} needs a key",
                hint=f"{CONTROL_HINT}; or --control-port moves it to loopback",
            )

    def _check_models(self) -> None:
        """Raise UsageError for what no model can be served with."""
        tables = self.model or self.tf_model_config
        if not (self.bundle or self.bundles or self.repository or tables):
            raise UsageError(
                "no bundle to serve",
                hint="edgeserve run NAME.edge, or bundle = 'NAME.edge' in the file",
            )
        for name in (self.name, *(m.name for m in self.model)):
            if name is not None and not NAME.fullmatch(name):
                raise UsageError(
                    f"'{name}' cannot be a model's name",
                    hint=NAME_RULE,
                )
        if self.name is not None and not (self.bundle and len(self.given) == 1):
            raise UsageError(
                "name can be set for one bundle only",
                hint="name several bundles in [[model]] tables",
            )
        self.check_model()
        for model in self.model:
            self.of(model).check_model()

    @property
    def given(self) -> tuple[str, ...]:
        """Everything that was named to serve, but for tables about models of the repository."""
        single = () if self.bundle is None else (self.bundle,)
        folder = () if self.repository is None else (self.repository,)
        config = () if self.tf_model_config is None else (self.tf_model_config,)
        return (
            *single,
            *self.bundles,
            *folder,
            *config,
            *(m.bundle for m in self.model if m.bundle),
        )

    def of(self, model: ModelTable) -> Self:
        """The settings of one model, where its table has the last word."""
        own = said(model)
        del own["bundle"], own["name"]
        return self.changed(own)

    def changed(self, own: dict[str, Any]) -> Self:
        """With what one model's table or file says. Where that has fewer priorities, tables about others are
        not for it."""
        if "priority_levels" in own and "priority" not in own:
            levels = own["priority_levels"]
            own = {**own, "priority": tuple(p for p in self.priority if p.level <= levels)}
        return msgspec.structs.replace(self, **own)

    def for_model(self) -> PerModel:
        """What one model is served with."""
        return taken(PerModel, self)

    def check_model(self) -> None:
        """Raise UsageError for a model's settings that cannot work."""
        check(self, kind=PerModel)
        if self.default_priority > self.priority_levels:
            raise UsageError("default_priority must be 1 to priority_levels")
        levels = [own.level for own in self.priority]
        if len(set(levels)) < len(levels):
            raise UsageError("two [[priority]] tables are about the same level")
        for own in self.priority:
            where = f"[[priority]] level {own.level}: "
            if not 1 <= own.level <= self.priority_levels:
                raise UsageError(f"{where}level must be 1 to priority_levels")
            check(own, where, PerLevel)

    @property
    def shared_memory_prefixes(self) -> tuple[str, ...]:
        """Of the names of shared memory that clients may register; none: they may not."""
        given = self.shared_memory
        return (given,) if isinstance(given, str) else given

    def read_keys(self) -> "Keys":
        """The keys of the file and the environment. Raises UsageError."""
        from edgeserve.serve.access.keys import read_keys

        return read_keys(self.keys, os.environ)

    def open_tls(self) -> "Tls | None":
        """Raises UsageError for certificates that cannot be used."""
        from edgeserve.serve.access.tls import Tls

        if self.tls_cert is None or self.tls_key is None:
            return None
        return Tls(self.tls_cert, self.tls_key, self.tls_client_ca)

    def effective_limits(self) -> Limits:
        if self.max_body is None:
            return self.limits
        return msgspec.structs.replace(self.limits, body_bytes=self.max_body)
