# A fleet on a cluster that is there, through charts/inferflux. Run `helm dependency build charts/inferflux` before.

terraform {
  required_version = ">= 1.5"
  required_providers {
    helm = {
      source  = "hashicorp/helm"
      version = "~> 2.17"
    }
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = "~> 2.35"
    }
  }
}

locals {
  # What prepare.py --kubernetes wrote: one document for each secret.
  documents = [for text in split("\n---\n", file("${var.secrets_dir}/kubernetes.yaml")) : yamldecode(text)]
  secrets   = { for each in local.documents : each.metadata.name => each.stringData }
}

resource "kubernetes_namespace" "fleet" {
  count = var.create_namespace ? 1 : 0
  metadata {
    name = var.namespace
  }
}

resource "kubernetes_secret" "prepared" {
  for_each = nonsensitive(toset(keys(local.secrets)))
  metadata {
    name      = each.key
    namespace = var.namespace
  }
  data       = local.secrets[each.key]
  depends_on = [kubernetes_namespace.fleet]
}

resource "kubernetes_secret" "api_keys" {
  metadata {
    name      = "inferflux-api-keys"
    namespace = var.namespace
  }
  data       = { api_keys = yamlencode(var.api_keys) }
  depends_on = [kubernetes_namespace.fleet]
}

resource "helm_release" "inferflux" {
  name       = var.release
  namespace  = var.namespace
  chart      = "${path.module}/../../../../charts/inferflux"
  values     = [for path in var.values_files : file(path)]
  timeout    = 900
  atomic     = true
  depends_on = [kubernetes_secret.prepared, kubernetes_secret.api_keys]
}
