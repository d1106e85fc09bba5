package provider

import (
	"cmp"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// AgentIdentity is the third identity at AWS: the pod's service account token,
// shown to the agent of EKS Pod Identity on the node.
const AgentIdentity = "pod-identity"

// agentAudience is that of the tokens which the agent takes.
const agentAudience = "pods.eks.amazonaws.com"

// The limits of AWS, from the references of STS (AssumeRole) and IAM.
const (
	minSession     = 15 * time.Minute
	maxSession     = 12 * time.Hour
	maxChained     = time.Hour // for a role that is assumed from another session
	briefSession   = 30 * time.Minute
	postgresPort   = 5432
	mysqlPort      = 3306
	roleARNExample = "arn:aws:iam::123456789012:role/orders"
)

var (
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	rdsHost  = regexp.MustCompile(`\.([a-z0-9-]+)\.rds\.amazonaws\.com(\.cn)?$`)
)

// awsRead takes the question to AWS out of the fields.
func (e *entry) awsRead(source string, c Connection) Read {
	identity := cmp.Or(e.oneOf("identity", identities), PodIdentity)
	s := Session{RoleARN: e.text("roleArn"), Policy: e.sessionPolicy(), Tags: e.sessionTags(), Region: e.text("region")}
	e.checkIdentity(identity, s)
	if source == rdsSource {
		s.Region = e.databaseRegion(s.Region, c)
	}
	a := s.Fill(e.replace, e.fault)
	a.Identity = identity
	if source == rdsSource {
		e.meaningless("source "+source+", whose tokens live 15m", "ttl")
		e.database(&a, c)
	} else {
		e.meaningless("source "+source, "connection.user")
		a.TTL = e.ttl(identity)
	}
	return Read{Source: source, Login: Login{Audience: e.awsAudience(identity)}, AWS: a}
}

// awsAudience is that of the token that AWS is shown; empty: none is.
func (e *entry) awsAudience(identity string) string {
	audience := e.text("audience")
	switch identity {
	case AgentIdentity:
		return cmp.Or(audience, agentAudience)
	case PodIdentity:
		return cmp.Or(audience, STSAudience)
	}
	e.meaningless("identity: node", "audience")
	return ""
}

// checkIdentity compares whose identity is used with what is asked for by it.
func (e *entry) checkIdentity(identity string, s Session) {
	switch {
	case identity == NodeIdentity:
		for _, name := range []string{"roleArn", "sessionPolicy", "sessionTags"} {
			if e.node(name) != nil {
				e.fault(name, "is set, but with identity: node the cluster's operator alone says it", "leave it out, or use identity: pod")
			}
		}
	case s.RoleARN == "" && identity == PodIdentity:
		e.fault("roleArn", "is missing", "set the IAM role to assume, like "+roleARNExample)
	case s.RoleARN == "":
		for _, name := range []string{"sessionPolicy", "sessionTags", "ttl"} {
			if e.node(name) != nil {
				e.fault(name, "has no effect without roleArn: the agent's session is taken as it is", "set roleArn, or leave it out")
			}
		}
	case identity == PodIdentity && s.Tags != nil:
		e.fault("sessionTags", "can't be sent with the pod's web identity token: AWS takes the tags in the token itself", "leave it out, or use identity: pod-identity")
	}
}

// ttl is the life that a session is asked for; 0: the default.
func (e *entry) ttl(identity string) time.Duration {
	ttl := e.duration("ttl", minSession)
	switch {
	case identity != PodIdentity && ttl > maxChained:
		e.fault("ttl", "is longer than 1h, the most that AWS gives a role that is assumed from another session", "set 1h, or use identity: pod")
	case ttl > maxSession:
		e.fault("ttl", "is longer than 12h, the most that AWS gives", "choose a shorter one")
	case ttl >= minSession && ttl < briefSession:
		e.warn("object %s: ttl is under 30m: AWS's SDKs look for new credentials 15m before the end, and wait for them at 10m", quote(e.name))
	}
	return ttl
}

// sessionPolicy reads a policy once, however many objects and tenants have it; nil
// without.
func (e *entry) sessionPolicy() *yaml.Node {
	written := e.node("sessionPolicy")
	if written == nil {
		return nil
	}
	if read, known := e.policies[written]; known {
		return read
	}
	read, err := ReadPolicy(written)
	if err != nil {
		e.fault(err.Field, err.Cause, err.Remedy)
		return nil
	}
	e.policies[written] = read
	return read
}

// sessionTags reads the tags of a session; nil without.
func (e *entry) sessionTags() map[string]string {
	n := e.node("sessionTags")
	if n == nil {
		return nil
	}
	var tags map[string]string
	if n.Kind != yaml.MappingNode || n.Decode(&tags) != nil || len(tags) == 0 {
		e.fault("sessionTags", "is no mapping of plain values, or empty", "write it like sessionTags: {team: orders}")
	}
	return tags
}

// database reads what an rds-iam token is good for: one user at one endpoint.
func (e *entry) database(a *AWS, c Connection) {
	port := c.Port
	if port == 0 {
		switch strings.ToLower(e.text("format")) {
		case "pg-service", "pgpass", "uri":
			port = postgresPort
		case "my-cnf":
			port = mysqlPort
		default:
			e.fault("connection.port", "is missing, and the token is good for one port", "write it like port: 5432")
		}
	}
	e.warnOfLongToken()
	if c.User == "" {
		e.fault("connection.user", "is missing", "set the database user that has rds_iam (PostgreSQL) or AWSAuthenticationPlugin (MySQL)")
	}
	if !hostName.MatchString(c.Host) {
		e.fault("connection.host", "is missing, or not one host name", "set the endpoint of the database, like orders.abc123.eu-central-1.rds.amazonaws.com")
	}
	a.Endpoint, a.User = net.JoinHostPort(strings.ToLower(c.Host), strconv.Itoa(port)), c.User
}

// databaseRegion is the region in the name of an endpoint of RDS, else the one that
// is written.
func (e *entry) databaseRegion(written string, c Connection) string {
	m := rdsHost.FindStringSubmatch(strings.ToLower(c.Host))
	if m == nil || !IsRegion(m[1]) {
		return written
	}
	if written != "" && written != m[1] {
		e.fault("region", brief(written)+" is not that of connection.host", "leave it out")
	}
	return m[1]
}
