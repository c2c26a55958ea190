"""The operator's page of a policy server, in a process of its own. See docs/dashboard.md.

`config`    its settings                         `gate`      who may ask for what
`launcher`  the server's side: start, feed, end  `app`       routes
`process`   the page's process                   `commands`  e-stop and rollback
`monitor`   what the page shows                  `fleet`, `registry_view`, `episodes`  where that comes from
"""
