"""The tables as Django sees them; the product's migrations made them."""

import uuid

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models


class User(AbstractBaseUser):
    """An account."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(max_length=254, unique=True, null=True)
    name = models.CharField(max_length=200, null=True)
    password = models.CharField(max_length=255, null=True, db_column="password_hash")
    role = models.CharField(max_length=32)
    is_active = models.BooleanField(default=True)
    email_verified = models.BooleanField(default=False)
    last_login = models.DateTimeField(null=True, db_column="last_login_at")
    erased_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    USERNAME_FIELD = "email"

    class Meta:
        """Where it is."""

        managed = False
        db_table = "users"

    def __str__(self) -> str:
        return str(self.id)


class File(models.Model):
    """A file, as far as it matters to a link."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    owner_id = models.UUIDField()
    status = models.CharField(max_length=32)

    class Meta:
        """Where it is."""

        managed = False
        db_table = "files"

    def __str__(self) -> str:
        return str(self.id)


class ShareLink(models.Model):
    """A link to a file."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    file = models.ForeignKey(File, on_delete=models.CASCADE)
    token_sha256 = models.CharField(max_length=64, unique=True)
    label = models.CharField(max_length=100, null=True)
    expires_at = models.DateTimeField()
    max_downloads = models.IntegerField(null=True)
    downloads = models.IntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        """Where it is."""

        managed = False
        db_table = "share_links"

    def __str__(self) -> str:
        return str(self.id)
