"""Where the operations are."""

from django.urls import path

from bench.peers.drf import views

urlpatterns = [
    path("readyz", views.readyz),
    path("v1/users/me", views.Me.as_view()),
    path("v1/users", views.Users.as_view()),
    path("v1/files/<uuid:file_id>/shares", views.Shares.as_view()),
]
