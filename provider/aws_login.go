package provider

import (
	"cmp"
	"regexp"
)

const (
	podIdentity  = "pod"
	nodeIdentity = "node"

	// stsAudience is what AWS expects in a pod's token, as EKS sets it up.
	stsAudience = "sts.amazonaws.com"

	roleARNExample = "arn:aws:iam::123456789012:role/orders"
)

var roleARN = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::[0-9]{12}:role/([\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)

// awsProof reads whose identity at AWS logs in, after the rest of the login.
func (p *parser) awsProof(l *Login) {
	identity, arn := p.parameter("awsIdentity"), p.parameter("vaultAwsRoleArn")
	if l.Method != awsLogin {
		for _, set := range [...]struct{ name, value string }{{"awsIdentity", identity}, {"vaultAwsRoleArn", arn}} {
			if set.value != "" {
				p.fail("", set.name, "is set, but vaultAuthMethod is not aws", "set vaultAuthMethod: aws, or leave it out")
			}
		}
		return
	}
	fail := func(cause, remedy string) { p.fail("", "vaultAwsRoleArn", cause, remedy) }
	switch l.AWSIdentity = cmp.Or(identity, podIdentity); l.AWSIdentity {
	case podIdentity:
		l.Audience = cmp.Or(l.Audience, stsAudience)
		l.AWSRoleARN = p.replace(arn, fail)
		if p.request.Attributes["vaultAwsRoleArn"] == "" {
			fail("is missing", "set the IAM role that the pod's service account may assume, like "+roleARNExample)
		} else if arn != "" && !roleARN.MatchString(l.AWSRoleARN) {
			fail(quote(l.AWSRoleARN)+" is no ARN of an IAM role", "write it like "+roleARNExample)
		}
	case nodeIdentity:
		if arn != "" {
			fail("is set, but awsIdentity is node", "leave it out: the daemon logs in with its own credentials as they are")
		}
		if l.Audience != "" {
			p.fail("", "audience", "is set, but awsIdentity is node", "leave it out: no token of the pod is used")
		}
	default:
		p.fail("", "awsIdentity", quote(identity)+" is unknown", didYouMean(identity, awsIdentities))
	}
}
