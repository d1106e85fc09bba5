package provider

import (
	"encoding/json"
)

// schema is a part of a JSON schema.
type schema map[string]any

// Schema returns the JSON schema (draft 2020-12) of a SecretProviderClass whose
// provider is Tenure, for editors. It is made of the words that Parse knows, so
// that both change together. As objects and defaults are YAML within a string,
// their schema is that string's contentSchema, and $defs/objects and
// $defs/defaults for those who keep them in files of their own. It is narrower
// than Parse where that helps an author: words are written one way, and unknown
// parameters are wrong. What only Parse can tell (paths, names that clash,
// templates) it lets through.
func Schema() []byte {
	embedded := func(name string) schema {
		return schema{"contentMediaType": "application/yaml", "contentSchema": schema{"$ref": "#/$defs/" + name}}
	}
	known := described(parameters, parameterTexts)
	refine(known, "vaultAuthMethod", schema{"enum": logins})
	refine(known, "awsIdentity", schema{"enum": awsIdentities})
	refine(known, "vaultSkipTLSVerify", schema{"enum": []string{"true", "false"}})
	refine(known, "mountPath", schema{"pattern": "^/"})
	refine(known, "objects", embedded("objects"))
	refine(known, "onTenantFailure", schema{"enum": tenantFailures})
	refine(known, "defaults", embedded("defaults"))
	for _, word := range legacyParameters {
		known[word] = schema{"type": "string", "deprecated": true, "description": "Ignored, as by the HashiCorp provider."}
	}
	text, err := json.MarshalIndent(schema{
		"$schema":  "https://json-schema.org/draft/2020-12/schema",
		"title":    "SecretProviderClass for Tenure",
		"type":     "object",
		"required": []string{"apiVersion", "kind", "metadata", "spec"},
		"properties": schema{
			"apiVersion": schema{"enum": []string{"secrets-store.csi.x-k8s.io/v1", "secrets-store.csi.x-k8s.io/v1alpha1"}},
			"kind":       schema{"const": "SecretProviderClass"},
			"spec": schema{
				"type": "object", "required": []string{"provider", "parameters"},
				"properties": schema{
					"provider":   schema{"type": "string", "description": "The daemon's --provider-name: " + ownName + " unless it was changed."},
					"parameters": schema{"$ref": "#/$defs/parameters"},
				},
			},
		},
		"$defs": schema{
			"parameters": schema{"type": "object", "properties": known, "required": []string{"objects"}, "additionalProperties": false},
			"objects":    schema{"type": "array", "minItems": 1, "maxItems": MaxObjects, "items": objectSchema("objectName")},
			"defaults":   objectSchema(),
		},
	}, "", "  ")
	if err != nil {
		panic(err) // strings, numbers and maps of them always marshal
	}
	return append(text, '\n')
}

// objectSchema is of an entry of objects.
func objectSchema(required ...string) schema {
	number := func(least, most int) schema { return schema{"type": "integer", "minimum": least, "maximum": most} }
	scalar := schema{"type": []string{"string", "number", "boolean"}}
	duration := schema{"type": []string{"string", "integer"}, "pattern": "^[0-9.]+[a-zµ0-9.]*$"}

	connection := described(connectionFields, connectionTexts)
	refine(connection, "port", number(1, 65535))
	refine(connection, "params", schema{"type": "object", "maxProperties": maxParams, "additionalProperties": scalar})

	known := described(fields, fieldTexts)
	refine(known, "secretKey", scalar)
	refine(known, "secretArgs", schema{"type": "object"})
	refine(known, "filePermission", schema{"type": []string{"string", "integer"}})
	refine(known, "connection", schema{"type": "object", "properties": connection, "additionalProperties": false})
	refine(known, "owner", number(0, noID-1))
	refine(known, "group", number(0, noID-1))
	refine(known, "refreshInterval", duration)
	refine(known, "overlap", duration)
	refine(known, "template", schema{"maxLength": maxTemplate})
	refine(known, "roleArn", schema{"pattern": "^arn:aws[a-z-]*:iam::"})
	refine(known, "sessionPolicy", schema{"type": []string{"object", "string"}})
	refine(known, "sessionTags", schema{"type": "object", "maxProperties": maxTags, "additionalProperties": scalar})
	refine(known, "region", schema{"pattern": regionName.String()})
	refine(known, "ttl", duration)
	for word, enum := range map[string][]string{"source": sources, "method": methods, "encoding": encodings, "format": formats, "identity": identities} {
		refine(known, word, schema{"enum": enum})
	}
	entry := schema{"type": "object", "properties": known, "additionalProperties": false}
	if len(required) > 0 {
		entry["required"] = required
	}
	return entry
}

// described makes a property of each word: text, until it is refined.
func described(words []string, texts map[string]string) schema {
	properties := schema{}
	for _, word := range words {
		properties[word] = schema{"type": "string", "description": texts[word]}
	}
	return properties
}

// refine sets more of a property that is there; a word that Parse does not know
// gets none.
func refine(properties schema, word string, more schema) {
	property, known := properties[word].(schema)
	for k, v := range more {
		if known {
			property[k] = v
		}
	}
}

// What editors show beside the words.
var (
	parameterTexts = map[string]string{
		"roleName":                 "The Vault role to log in with, as the pod; needed unless no object asks Vault. {namespace}, {serviceAccount} and {tenant} are replaced.",
		"vaultAddress":             "Vault's URL; without it, the daemon's.",
		"vaultNamespace":           "Vault Enterprise's namespace; without it, the daemon's.",
		"vaultCACertPath":          "File of CAs for Vault's certificate, below the daemon's TLS directory.",
		"vaultCADirectory":         "Directory of such files, below the daemon's TLS directory.",
		"vaultTLSServerName":       "The name expected in Vault's certificate.",
		"vaultTLSClientCertPath":   "The client certificate, below the daemon's TLS directory; together with vaultTLSClientKeyPath.",
		"vaultTLSClientKeyPath":    "The client certificate's key, below the daemon's TLS directory.",
		"vaultKubernetesMountPath": "Older name of vaultAuthMountPath.",
		"vaultAuthMountPath":       "Path of the auth mount without auth/; without it, the name of vaultAuthMethod.",
		"audience":                 "Which of the pod's tokens logs in; without it, " + DefaultAudience + ", or " + STSAudience + " with vaultAuthMethod aws.",
		"vaultSkipTLSVerify":       "Don't verify Vault's certificate. The daemon must allow it.",
		"objects":                  "YAML list of what to read and which files to write.",
		"vaultAuthMethod":          "The way to log in to Vault; without it, kubernetes.",
		"awsIdentity":              "Whose identity at AWS logs in, for vaultAuthMethod aws; without it, " + PodIdentity + ". The cluster's operator must allow " + NodeIdentity + ".",
		"vaultAwsRoleArn":          "The IAM role that the pod's token is exchanged for, for vaultAuthMethod aws. {namespace} and {serviceAccount} are replaced.",
		"defaults":                 "YAML mapping of object fields for all objects.",
		"mountPath":                "Where the application mounts the volume, for formats that name a file.",
		"tenants":                  "YAML list of tenants' names, or patterns with *: every object is read and written for each, as {tenant}.",
		"tenantsFrom":              "Where patterns find their names: " + FromBindings + " (the cluster's own rules), or a Vault path to LIST. Without it, " + FromBindings + ".",
		"onTenantFailure":          "skip leaves a tenant out whose secrets can't be had, fail fails the volume. Without it, fail for listed names, skip for patterns.",
	}
	fieldTexts = map[string]string{
		"objectName":      "The file's name in the volume; a directory for formats of several files. {namespace}, {serviceAccount} and {tenant} are replaced.",
		"secretPath":      "The path to read in Vault, like secret/data/app or database/creds/app. {namespace}, {serviceAccount} and {tenant} are replaced.",
		"secretKey":       "The key whose value is written; without it, the whole answer.",
		"method":          "How the path is read; without it, GET.",
		"secretArgs":      "What a PUT or POST sends.",
		"filePermission":  "Octal mode, like 0640; without it, the volume's.",
		"encoding":        "How the value is decoded before it is written.",
		"source":          "The backend; without it, vault.",
		"format":          "How the file is written; without it, as the HashiCorp provider does.",
		"template":        "A Go template, for format: template.",
		"connection":      "The database's address, for its formats.",
		"owner":           "The file's numeric owner.",
		"group":           "The file's numeric group.",
		"refreshInterval": "How often to look at what has no lease: seconds, or like 2m; at least 10s. Without it, 2m.",
		"identity":        "Who asks AWS: the pod with its web identity token (pod, the default), EKS Pod Identity's agent (pod-identity), or the daemon (node).",
		"roleArn":         "The IAM role to assume. {namespace}, {serviceAccount} and {tenant} are replaced.",
		"sessionPolicy":   "An IAM policy that narrows the session, as YAML or JSON. {namespace}, {serviceAccount} and {tenant} are replaced in its values.",
		"sessionTags":     "Tags of the session, with identity: pod-identity and a roleArn.",
		"region":          "The AWS region; without it, the daemon's.",
		"ttl":             "How long an AWS session lives: seconds, or like 1h; at least 15m. Without it, 1h.",
		"audience":        "Which of the pod's tokens AWS is shown; without it, " + STSAudience + ", or " + agentAudience + " with identity: pod-identity.",
		"overlap":         "How long the old credential outlives a switch: seconds, or like 10m. Without it, 10m, at most a fifth of the lease.",
	}
	connectionTexts = map[string]string{
		"host":   "Host names or addresses, separated by commas.",
		"port":   "Port; without it, the database's own.",
		"dbname": "The database's name.",
		"user":   "The database user, for source: rds-iam.",
		"params": "Further settings, like sslmode.",
	}
)
