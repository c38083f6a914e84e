"""The node's gRPC server: its services, health and reflection, all on one port."""

from __future__ import annotations

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from swarmd.core import options
from swarmd.core.errors import ConfigError
from swarmd.node.inference import InferenceService
from swarmd.node.peering import PeerService
from swarmd.v1 import inference_pb2, inference_pb2_grpc, peer_pb2
from swarmd.wire.channel import new_server
from swarmd.wire.sealed import add_peer_service

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name,
)


class Server:
    """Bound when it is made, so that a port in use is noticed before anything is loaded."""

    def __init__(self, listen: str) -> None:
        self._server = new_server()
        host, _ = options.split_address(listen)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {listen}: the port is in use or the address is not this "
                "machine's; choose another one with --listen"
            ) from error
        self.address = options.join_address(host, port)
        """`HOST:PORT` that is listened on, with the port that port 0 became."""
        self._health = health.aio.HealthServicer()

    async def start(self, inference: InferenceService, peering: PeerService) -> None:
        """Answer calls. Health says NOT_SERVING until `serving` is called."""
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, self._server)
        add_peer_service(peering, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self.serving(False)
        await self._server.start()

    async def serving(self, yes: bool) -> None:
        """Set what health checks are told, for the whole server and each service."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *_SERVICES):
            await self._health.set(name, status.SERVING if yes else status.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give the running ones `grace` seconds, then end them."""
        await self._server.stop(grace)
