variable "package" {
  description = "What pip installs on NATS nodes and API replicas: a requirement, or the URL of a wheel."
  type        = string
  default     = "inferflux"
}

variable "worker_package" {
  description = "What pip installs on workers; llama.cpp is compiled there."
  type        = string
  default     = "inferflux[llamacpp]"
}

variable "secrets_dir" {
  description = "Folder that deploy/nats/prepare.py wrote for these nodes."
  type        = string
}

variable "nodes" {
  description = "NATS nodes: their names, as given to prepare.py, and their private addresses."
  type        = map(string)
  validation {
    condition     = contains([1, 3, 5], length(var.nodes))
    error_message = "NATS needs one, three or five nodes."
  }
}

variable "settings" {
  description = "Sections of server.yaml for API replicas and workers."
  type        = any
  default     = {}
}

variable "models" {
  description = "The registry: what `models:` is in registry.yaml."
  type        = any
  default     = []
}

variable "model_commands" {
  description = "Shell commands that a worker runs before its first start, to bring model files to /var/lib/inferflux/models."
  type        = list(string)
  default     = []
}
