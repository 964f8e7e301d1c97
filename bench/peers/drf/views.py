"""The operations as generic views."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from rest_framework import generics, status
from rest_framework.pagination import CursorPagination
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from bench.peers.common import STAFF
from bench.peers.drf.models import File, User
from bench.peers.drf.serializers import ShareSerializer, UserSerializer


class IsStaff(BasePermission):
    """Lets only staff pass."""

    def has_permission(self, request: Request, view: Any) -> bool:  # noqa: ARG002 - DRF names them
        """Look at the role."""
        return request.user.role in STAFF


class Pages(CursorPagination):
    """Keyset pages in the envelope of this API."""

    ordering = ("-created_at", "-id")
    page_size = 20
    page_size_query_param = "limit"
    max_page_size = 100

    def get_paginated_response(self, data: Any) -> Response:
        """Put the page into the envelope."""
        return Response({"data": data, "meta": {"limit": self.page_size, "next_cursor": self.get_next_link()}})

    def encode_cursor(self, cursor: Any) -> str:
        """Return the cursor alone, which DRF would put into a URL."""
        return parse_qs(urlsplit(super().encode_cursor(cursor)).query)["cursor"][0]


class Me(generics.RetrieveAPIView):
    """One's own account."""

    serializer_class = UserSerializer

    def get_object(self) -> User:
        """Return the caller."""
        return self.request.user

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer in the envelope."""
        return Response({"data": super().retrieve(request, *args, **kwargs).data})


class Users(generics.ListAPIView):
    """All accounts, newest first."""

    queryset = User.objects.filter(erased_at=None)
    serializer_class = UserSerializer
    permission_classes = (IsAuthenticated, IsStaff)
    pagination_class = Pages


class Shares(generics.CreateAPIView):
    """Links to a file of one's own."""

    serializer_class = ShareSerializer

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:  # noqa: ARG002 - DRF names them
        """Make a link."""
        own_files = File.objects.filter(owner_id=request.user.id).exclude(status="deleting")
        file = get_object_or_404(own_files, id=kwargs["file_id"])
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        link = serializer.save(file=file)
        headers = {"Location": f"/v1/files/{file.id}/shares/{link.id}"}
        return Response({"data": serializer.data}, status=status.HTTP_201_CREATED, headers=headers)


def readyz(_request: HttpRequest) -> JsonResponse:
    """Say whether the database answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return JsonResponse({"status": "ready"})
