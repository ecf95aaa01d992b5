# Cloud-init for the three kinds of machines, whoever rents them out. It needs no provider: `terraform apply` here shows
# what a machine would be told.

terraform {
  required_version = ">= 1.5"
}

locals {
  units  = "${path.module}/../../../systemd"
  nats   = "${path.module}/../../../nats"
  server = yamlencode(merge({ registry = { path = "/etc/inferflux/registry.yaml" } }, var.settings))

  tls = { "ca.pem" = file("${var.secrets_dir}/ca.pem") }

  node = {
    for name, address in var.nodes : name => templatefile("${path.module}/templates/cloud-init.yaml.tftpl", {
      role     = "nats"
      package  = var.package
      unit     = file("${local.units}/inferflux-nats.service")
      commands = []
      files = {
        "/etc/inferflux/nats/cluster.conf"     = file("${local.nats}/cluster.conf")
        "/etc/inferflux/nats/cluster-tls.conf" = file("${local.nats}/cluster-tls.conf")
        "/etc/inferflux/nats/users.conf"       = file("${var.secrets_dir}/users.conf")
        "/etc/inferflux/nats/ca.pem"           = local.tls["ca.pem"]
        "/etc/inferflux/nats/node.pem"         = file("${var.secrets_dir}/${name}.pem")
        "/etc/inferflux/nats/node.key"         = file("${var.secrets_dir}/${name}.key")
        "/etc/inferflux/nats.env" = join("\n", [
          "NATS_NAME=${name}",
          "NATS_LISTEN=0.0.0.0:4222",
          "NATS_CLUSTER_LISTEN=0.0.0.0:6222",
          "NATS_MONITOR_LISTEN=127.0.0.1:8222",
          "NATS_ROUTES=[${join(", ", [for other, at in var.nodes : "nats://${at}:6222" if other != name])}]",
          "NATS_STORE_DIR=/var/lib/inferflux-nats",
          "NATS_TLS_CERT=/etc/inferflux/nats/node.pem",
          "NATS_TLS_KEY=/etc/inferflux/nats/node.key",
          "NATS_TLS_CA=/etc/inferflux/nats/ca.pem",
          "",
        ])
      }
    })
  }

  role = {
    for role in ["api", "worker"] : role => templatefile("${path.module}/templates/cloud-init.yaml.tftpl", {
      role     = role
      package  = role == "worker" ? var.worker_package : var.package
      unit     = file("${local.units}/inferflux-${role}.service")
      commands = role == "worker" ? var.model_commands : []
      files = {
        "/etc/inferflux/server.yaml"   = local.server
        "/etc/inferflux/registry.yaml" = yamlencode({ models = var.models })
        "/etc/inferflux/ca.pem"        = local.tls["ca.pem"]
        "/etc/inferflux/${role}.env" = join("\n", [
          trimspace(file("${var.secrets_dir}/${role}.env")),
          "INFERFLUX_BROKER_TLS_CA=/etc/inferflux/ca.pem",
          role == "api" ? "INFERFLUX_SERVER_HOST=0.0.0.0" : "INFERFLUX_WORKER_METRICS_HOST=0.0.0.0\nINFERFLUX_WORKER_METRICS_PORT=9100",
          "",
        ])
      }
    })
  }
}
