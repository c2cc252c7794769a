"""The version, where the build and a checkout without installation both find it."""

VERSION = "0.1.0"
