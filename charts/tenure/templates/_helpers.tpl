{{- define "tenure.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* One release in a namespace is the rule, so a release named tenure gives tenure, not tenure-tenure. */}}
{{- define "tenure.fullname" -}}
{{- $name := include "tenure.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tenure.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tenure.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tenure.labels" -}}
{{ include "tenure.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tenure.image" -}}
{{- $repository := required "image.repository is not set: there is no published image yet; build one with make image, push it to your registry, and name it here" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tenure.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tenure.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* "true" where anything needs the Kubernetes API, else empty. */}}
{{- define "tenure.asksKubernetes" -}}
{{- range $on := values .Values.kubernetes -}}
{{- if $on }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* The name of the Secret with the version key; empty: each node makes its own. */}}
{{- define "tenure.versionKeySecret" -}}
{{- if .Values.versionKey.existingSecret -}}
{{- .Values.versionKey.existingSecret -}}
{{- else if .Values.versionKey.create -}}
{{- include "tenure.fullname" . }}-version-key
{{- end -}}
{{- end -}}

{{/* slog's level for a level or for klog's number. */}}
{{- define "tenure.logLevel" -}}
{{- if kindIs "string" .Values.logVerbosity -}}
{{- .Values.logVerbosity -}}
{{- else -}}
{{- ternary "debug" "info" (ge (int .Values.logVerbosity) 4) -}}
{{- end -}}
{{- end -}}

{{/* What can only be seen when several values are known. */}}
{{- define "tenure.check" -}}
{{- if ne (int .Values.healthzPort) (int .Values.metrics.port) -}}
{{- fail "healthzPort and metrics.port differ, but one server answers both: set both to the same port" -}}
{{- end -}}
{{- if and .Values.kubernetes.spcWatch (not .Values.kubernetes.podWatch) -}}
{{- fail "kubernetes.spcWatch is on without kubernetes.podWatch: what a pod overrides is only known from the pod; switch both on" -}}
{{- end -}}
{{- if and .Values.vault.tls.ca.configMap .Values.vault.tls.ca.secret -}}
{{- fail "vault.tls.ca names both a configMap and a secret: name one" -}}
{{- end -}}
{{- $driver := index .Values "secrets-store-csi-driver" -}}
{{- if $driver.install -}}
{{- if ne $driver.linux.kubeletRootDir .Values.kubeletRootDir -}}
{{- fail "kubeletRootDir and secrets-store-csi-driver.linux.kubeletRootDir differ: set both to kubelet's root directory" -}}
{{- end -}}
{{- if not (has .Values.providersDir (prepend $driver.linux.additionalProvidersDirs $driver.linux.providersDir)) -}}
{{- fail "providersDir is none of the driver's: set it to secrets-store-csi-driver.linux.providersDir" -}}
{{- end -}}
{{- end -}}
{{- end -}}
