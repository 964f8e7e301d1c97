"""Makes the endpoint at Stripe that sends us webhooks: once for each installation, from the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import stripe

from project.errors import CommandRefused
from project.payments.stripe_gateway import PAGE, client_of, translated

if TYPE_CHECKING:
    from stripe.params import WebhookEndpointCreateParams

EVENT_TYPES: tuple[Any, ...] = (
    "payment_intent.created",
    "payment_intent.requires_action",
    "payment_intent.processing",
    "payment_intent.amount_capturable_updated",
    "payment_intent.payment_failed",
    "payment_intent.succeeded",
    "payment_intent.canceled",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.refunded",
    "charge.refund.updated",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
)


class EndpointExists(CommandRefused):
    """There is an endpoint with this address already."""


@dataclass(frozen=True)
class Endpoint:
    """A webhook endpoint that was made. Stripe tells its secret only now."""

    id: str
    url: str
    api_version: str
    secret: str
    replaced: list[str]


def connect(secret_key: str) -> stripe.StripeClient:
    """Return the client of the account that the key belongs to; nothing is sent yet."""
    return client_of(secret_key)


def make_endpoint(client: stripe.StripeClient, *, url: str, replace: bool = False) -> Endpoint:
    """Let Stripe send the events that we act on to this address, in the API version that our SDK reads.

    With `replace` those with the same address are deleted, after the new one was made: no event is missed.

    Raises:
        EndpointExists: there is one, and `replace` is not set. GatewayError: Stripe refuses or does not answer.
    """
    known = [endpoint.id for endpoint in _endpoints(client) if endpoint.url == url]
    if known and not replace:
        raise EndpointExists("Stripe has an endpoint with this address already: use its secret, or --replace it.")
    version: Any = stripe.api_version
    params: WebhookEndpointCreateParams = {
        "url": url,
        "enabled_events": list(EVENT_TYPES),
        "api_version": version,
        "description": "Made by `flask payments setup-webhook`",
    }
    with translated():
        made = client.v1.webhook_endpoints.create(params)
    for endpoint_id in known:
        with translated():
            client.v1.webhook_endpoints.delete(endpoint_id)
    return Endpoint(made.id, url, version, str(made.secret), replaced=known)


def _endpoints(client: stripe.StripeClient) -> Iterator[stripe.WebhookEndpoint]:
    with translated():
        yield from client.v1.webhook_endpoints.list({"limit": PAGE}).auto_paging_iter()
