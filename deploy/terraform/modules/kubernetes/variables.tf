variable "release" {
  description = "Name of the Helm release."
  type        = string
  default     = "inferflux"
}

variable "namespace" {
  type    = string
  default = "inferflux"
}

variable "create_namespace" {
  type    = bool
  default = true
}

variable "secrets_dir" {
  description = "Folder of `python deploy/nats/prepare.py --kubernetes NAMESPACE --out FOLDER`."
  type        = string
}

variable "api_keys" {
  description = "The list auth.api_keys."
  type        = list(any)
  sensitive   = true
}

variable "values_files" {
  description = "Values files of charts/inferflux, such as deploy/values.yaml."
  type        = list(string)
  default     = []
}
