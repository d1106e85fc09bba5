package provider

import (
	"maps"
	"slices"
	"strings"
)

// AppRoleMethod is the login method that takes a Secret in place of the pod's token.
const AppRoleMethod = "approle"

// SecretRef is where a pod names that Secret, and what an error blames.
const SecretRef = "nodePublishSecretRef"

// AppRole returns role_id and secret_id out of the nodePublishSecretRef Secret.
// Space around a value is an editor's; Vault cuts it off too, so that its texts
// would quote the rest. secretID is empty where the Secret has no such key: an
// AppRole with bind_secret_id=false takes none. Errors are *Error of class
// Precondition.
func (id Identity) AppRole() (roleID, secretID Secret, err error) {
	const wanted = "name a Secret with the keys role_id and secret_id in nodePublishSecretRef of the pod's CSI volume"
	if len(id.Secrets) == 0 {
		return "", "", &Error{
			Class: Precondition, Field: SecretRef, Cause: "no Secret with role_id and secret_id came with the Mount call",
			Remedy: wanted + "; after a restart of the daemon it comes again with a republish of the driver (enableSecretRotation: true)",
		}
	}
	value := func(key string) Secret { return Secret(strings.TrimSpace(id.Secrets[key].Reveal())) }
	roleID, secretID = value("role_id"), value("secret_id")
	var missing []string
	if _, there := id.Secrets["secret_id"]; secretID == "" && (there || roleID == "") {
		missing = append(missing, "secret_id")
	}
	if roleID == "" {
		missing = append(missing, "role_id")
	}
	if missing == nil {
		return roleID, secretID, nil
	}
	keys := slices.Sorted(maps.Keys(id.Secrets))
	keys = keys[:min(len(keys), 8)]
	return "", "", &Error{
		Class: Precondition, Field: SecretRef, Remedy: wanted,
		Cause: "the Secret of the Mount call has no " + strings.Join(missing, " and no ") + " (keys that came: " + brief(strings.Join(keys, ", ")) + ")",
	}
}
