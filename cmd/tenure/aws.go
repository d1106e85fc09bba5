package main

import (
	"context"
	"flag"
	"log/slog"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/internal/aws"
)

// awsFlags are the defaults for what AWS is asked without Vault, and where.
type awsFlags struct {
	region, stsEndpoint, agent, cluster string
	fips                                bool
}

func (a *awsFlags) defineFlags(f *flag.FlagSet, env map[string]string) {
	f.StringVar(&a.region, "aws-region", env["AWS_REGION"], "AWS `region` where an object has none; also AWS_REGION")
	f.StringVar(&a.stsEndpoint, "aws-sts-endpoint", "", "`URL` of STS, as of a VPC endpoint (default AWS's own of the region)")
	f.BoolVar(&a.fips, "aws-fips", false, "ask AWS's FIPS endpoints")
	f.StringVar(&a.agent, "aws-pod-identity-agent", aws.DefaultAgent, "`URL` of the EKS Pod Identity agent; http://[fd00:ec2::23]/v1/credentials where nodes have IPv6 alone")
	f.StringVar(&a.cluster, "cluster-name", "", "`name` of this cluster, which goes into the names of AWS sessions")
}

// source returns a Source that works as the flags say. The node's credentials are
// nil where no pod may have them.
func (a awsFlags) source(node awssdk.CredentialsProvider, log *slog.Logger, metrics prometheus.Registerer) (*aws.Source, error) {
	return aws.New(aws.Config{
		Region: a.region, STSEndpoint: a.stsEndpoint, FIPS: a.fips, Agent: a.agent, Cluster: a.cluster, Node: node,
		Logger: log, Registerer: metrics,
	})
}

// nodeCredentials are the daemon's own, as AWS's SDK finds them: environment, web
// identity, container, instance. It looks at the first use, and not before.
func (a awsFlags) nodeCredentials() awssdk.CredentialsProvider {
	return awssdk.CredentialsProviderFunc(func(ctx context.Context) (awssdk.Credentials, error) {
		c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(a.region)) // an empty region changes nothing
		if err != nil {
			return awssdk.Credentials{}, err
		}
		return c.Credentials.Retrieve(ctx)
	})
}
