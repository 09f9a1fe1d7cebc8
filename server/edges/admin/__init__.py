"""/admin over HTTP, one module a subject: each adds its routes to the app of rest. They decide nothing."""
