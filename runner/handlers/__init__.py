"""The bundled handlers, one module each: ordinary plugins, found by their entry points like anybody's."""
