"""The shapes of accounts and links."""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from bench.peers.common import DEFAULT_SECONDS, MAX_SECONDS, PUBLIC_URL
from bench.peers.drf.models import ShareLink, User


class UserSerializer(serializers.ModelSerializer):
    """An account as it is shown."""

    last_login_at = serializers.DateTimeField(source="last_login")

    class Meta:
        """What of it."""

        model = User
        fields = (
            "id",
            "email",
            "name",
            "role",
            "is_active",
            "email_verified",
            "created_at",
            "updated_at",
            "last_login_at",
        )


class ShareSerializer(serializers.ModelSerializer):
    """A link: how long and how often it may be used, and, when it is new, its address."""

    expires_in = serializers.IntegerField(min_value=1, max_value=MAX_SECONDS, default=DEFAULT_SECONDS, write_only=True)
    max_downloads = serializers.IntegerField(min_value=1, allow_null=True, default=None)
    label = serializers.CharField(min_length=1, max_length=100, allow_null=True, default=None)
    url = serializers.CharField(read_only=True)

    class Meta:
        """What of it."""

        model = ShareLink
        fields = ("id", "expires_in", "expires_at", "max_downloads", "downloads", "label", "created_at", "url")
        read_only_fields = ("id", "expires_at", "downloads", "created_at")

    def create(self, validated_data: dict[str, Any]) -> ShareLink:
        """Make the link with a token of its own."""
        token = secrets.token_urlsafe(32)
        seconds = validated_data.pop("expires_in")
        link = ShareLink.objects.create(
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
            expires_at=timezone.now() + timedelta(seconds=seconds),
            **validated_data,
        )
        link.url = f"{PUBLIC_URL}/v1/shares/{token}"
        return link
