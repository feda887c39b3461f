"""Plan ► Deployment: put a plan in force and undo it."""

from __future__ import annotations

from gimlet_lab.backends.base import Backend, Deployment, backend, backend_of, backends

__all__ = ["Backend", "Deployment", "backend", "backend_of", "backends"]
