package provider

import "cmp"

// awsProof reads whose identity at AWS logs in, after the rest of the login.
func (p *parser) awsProof(l *Login) {
	identity, arn := p.parameter("awsIdentity"), p.parameter("vaultAwsRoleArn")
	if l.Method != AWSMethod {
		for _, set := range [...]struct{ name, value string }{{"awsIdentity", identity}, {"vaultAwsRoleArn", arn}} {
			if set.value != "" {
				p.fail("", set.name, "is set, but vaultAuthMethod is not aws", "set vaultAuthMethod: aws, or leave it out")
			}
		}
		return
	}
	fail := func(cause, remedy string) { p.fail("", "vaultAwsRoleArn", cause, remedy) }
	switch l.AWSIdentity = cmp.Or(identity, PodIdentity); l.AWSIdentity {
	case PodIdentity:
		l.Audience = cmp.Or(l.Audience, STSAudience)
		l.AWSRoleARN = p.replace(arn, fail)
		if p.request.Attributes["vaultAwsRoleArn"] == "" {
			fail("is missing", "set the IAM role that the pod's service account may assume, like "+roleARNExample)
		} else if cause, remedy := RoleFault(l.AWSRoleARN, ""); arn != "" && cause != "" {
			fail(cause, remedy)
		}
	case NodeIdentity:
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
